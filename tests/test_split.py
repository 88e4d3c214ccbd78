"""Who trains, validates and tests: by patient, and as many slices as the paper has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_data import case

from training import split
from trtseg.errors import InputError

groups = st.sampled_from("ABCDEFGH")


@given(
    st.lists(st.tuples(groups, st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.sets(groups),
    st.integers(0, 1000),
)
@settings(deadline=None)
def test_no_split_divides_a_patient_or_trains_on_what_it_must_not(rows, named, seed):
    cases = [
        case(str(i), group, trainable=trainable, held_out=held, source="lits" if is_lits else "other")
        for i, (group, trainable, held, is_lits) in enumerate(rows)
    ]
    plain = split.by_patient(cases, named)
    liver = [np.arange(9) % 3 > 0] * len(cases)
    splits = [plain]
    if len({c.group for c in cases if c.source == "lits" and plain[c.group] == "train"}) >= 3:
        drawn, keep, _ = split.draw_paper(cases, liver, plain, seed)
        splits.append(drawn)
        assert all((np.diff(k) > 0).all() for k in keep)
        assert {drawn[c.group] for c, k in zip(cases, keep, strict=True) if len(k)} >= {
            "train",
            "validation",
            "test",
        }
    for one in splits:  # a patient has one split by construction: it must be the right one
        for c in cases:
            assert c.trainable or one[c.group] == "validation"
            assert not (c.held_out or c.group in named) or one[c.group] == "validation"


def paper(seed, patients=40, slices=60):
    """Draw from many patients with two scans each, the first and the last ten slices without liver."""
    cases = [case(f"{p}-{i}", f"p{p}") for p in range(patients) for i in range(2)]
    cases += [case("chaos", "c", source="chaos", trainable=False), case("n", "n", source="free")]
    liver = [np.pad(np.ones(slices - 20, bool), 10)] * (2 * patients) + [np.ones(5, bool), np.zeros(1, bool)]
    return cases, liver, *split.draw_paper(cases, liver, split.by_patient(cases, ()), seed)


def test_the_paper_has_765_50_and_50_slices():
    cases, liver, by_patient, keep, warnings = paper(seed=1)
    assert not warnings
    count, who = dict.fromkeys(split.PAPER, 0), {subset: set() for subset in split.PAPER}
    for one, own, k in zip(cases, liver, keep, strict=True):
        if one.source == "lits":
            assert own[k].all()  # slices with liver
            assert len(set(k.tolist())) == len(k)
            count[by_patient[one.group]] += len(k)
            who[by_patient[one.group]].add(one.group)
    assert count == {"train": 765, "validation": 50, "test": 50}
    # 40 patients by 765, 50 and 50 of 865: 2.3 each to validate and test
    assert {subset: len(own) for subset, own in who.items()} == {"train": 36, "validation": 2, "test": 2}
    assert [len(k) for k in keep[-2:]] == [5, 1]  # what is not LiTS is as without the draw
    assert [by_patient[one.group] for one in cases[-2:]] == ["validation", "train"]


def test_the_draw_is_a_function_of_its_seed():
    first, again, other = (paper(seed)[2:4] for seed in (1, 1, 2))
    assert first[0] == again[0] != other[0]
    assert all((a == b).all() for a, b in zip(first[1], again[1], strict=True))


def test_a_draw_from_too_few_slices_says_so():
    # 4 patients of 24 slices with liver: two test, so that they are as near to 50 as can be, one validates, one trains
    _, _, by_patient, keep, warnings = paper(seed=0, patients=4, slices=32)
    subsets = [by_patient[f"p{p}"] for p in range(4)]
    assert sorted(subsets) == ["test", "test", "train", "validation"]
    assert warnings == [
        "paper: train has 24 slices with liver, not 765: all of them taken",
        "paper: validation has 24 slices with liver, not 50: all of them taken",
        "paper: test has 48 slices with liver, not 50: all of them taken",
    ]
    assert sum(len(k) for k in keep[:8]) == 96
    with pytest.raises(InputError, match="got 2 patients of LiTS; expected at least 3"):
        paper(seed=0, patients=2)
