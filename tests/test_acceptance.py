"""The acceptance gate: sound engines pass, and each way in which engines are known to fail is named."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import tiny
from acceptance_cases import ROLES, Case, begins, checked, numbers, sound

from trtseg import models
from trtseg.engines.acceptance import CRITERIA, MIN_PIXELS, Acceptance, check
from trtseg.engines.base import logits_of
from trtseg.engines.calibration import Reference, open_reference, references
from trtseg.engines.precision import FP32
from trtseg.errors import ArgumentError

IDENTICAL = "identical slices in one batch gave different logits"
NEIGHBOURS = "the slot or the neighbours of a slice changed its logits"
AGAIN = "a second run of the same batch gave other logits"


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Of each role a tiny net on the phantom."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for path in (tiny.cascade_model(folder / "cascade"), tiny.one_step_model(folder / "one")):
        files = models.find(path)
        for spec in files.spec.nets:
            found[spec.role] = Case(spec, references(files)[spec.role])
    return found


@pytest.fixture(params=ROLES)
def case(request, cases):
    return cases[request.param]


@pytest.fixture(params=[1, 4])
def batch(request) -> int:
    return request.param


def up(out: np.ndarray, *at: int) -> None:
    """Change one logit by one bit."""
    out[at] = np.nextafter(out[at], out.dtype.type(99))


class TestSoundEngines:
    def test_the_reference_itself_passes(self, case, batch):
        found = checked(lambda rows: sound(case)(rows).copy(), case, batch, FP32)
        images, logits = case.reference.images, case.reference.logits
        assert found.accepted
        assert found.reasons == ()
        assert (found.slices, found.batch) == (len(images), batch)
        assert (found.max_difference, found.rms_difference) == (0, 0)
        assert (found.flipped, found.flipped_share, found.largest_flip_margin) == (0, 0, 0)
        if case.spec.role == "one-step":
            winner = logits.argmax(axis=1)
            sizes = {"liver": int((winner == 1).sum()), "tumour": int((winner == 2).sum())}
        else:
            counts = (images > 0) | (case.spec.role == "liver")
            sizes = {case.spec.role: int(((logits > 0) & counts).sum())}
        assert found.compared_pixels == sizes
        assert min(sizes.values()) >= MIN_PIXELS
        assert found.dice == dict.fromkeys(sizes, 1.0)
        assert found.reference == case.reference.source
        assert (found.device, found.driver, found.criteria) == ("a GPU", "1.2", CRITERIA)

    def test_logits_rounded_to_fp16_pass(self, case, batch):
        found = checked(sound(case), case, batch)
        assert found.accepted
        assert 0 < found.rms_difference < found.max_difference < 0.05

    @pytest.mark.parametrize("batch", [1, 4, 16])
    def test_every_slice_runs_in_every_slot_twice(self, case, batch):
        asked = []

        def run(rows):
            assert (rows.dtype, rows.shape) == (np.float16, (batch, 1, *tiny.SIZE))
            assert rows.flags.c_contiguous
            asked.append(tuple(numbers(case, rows)))
            return sound(case)(rows)

        found = checked(run, case, batch)
        slices = len(case.reference.images)
        assert found.runs == len(asked) == (2 if batch == 1 else 4) * slices
        half = len(asked) // 2
        assert asked[:half] == asked[half:], "the second run of a batch comes after all others"
        wanted = {(i, slot): 1 for i in range(slices) for slot in range(batch)}
        alone = [b for b in asked[:half] if len(set(b)) == 1]
        mixed = [b for b in asked[:half] if len(set(b)) > 1]
        for plan in (alone, mixed) if batch > 1 else (alone,):
            assert Counter((b[slot], slot) for b in plan for slot in range(batch)) == wanted

    def test_what_an_engine_does_to_its_arrays_changes_nothing(self, case):
        """A runner may give the same buffer each time, and an engine may write to its input."""
        buffer = np.empty_like(case.reference.logits[:4], np.float16)

        def run(rows):
            buffer[:] = sound(case)(rows)
            rows[:] = 7
            return buffer

        assert checked(run, case, 4).accepted


class TestInconsistentEngines:
    def test_different_answers_for_identical_rows(self, case):
        def run(rows):
            out = sound(case)(rows)
            for slot in range(1, 4):
                out[slot, 0, 5, 5] += np.float16(0.125 * slot)
            return out

        found = checked(run, case, 4)
        begins(found, IDENTICAL, NEIGHBOURS)
        assert found.reasons[0] == f"{IDENTICAL}, in 8 of 8 batches (slots 1, 2, 3)"

    def test_the_sign_of_zero(self, case):
        """Equal numbers are not enough: the bits are to be the same."""

        def run(rows):
            out = sound(case)(rows)
            out[:, 0, 0, 0] = 0
            out[1, 0, 0, 0] = -0.0
            return out

        assert any(r.startswith(IDENTICAL) for r in checked(run, case, 4).reasons)

    def test_one_bit_in_one_single_run(self, case, batch):
        runs = []

        def run(rows):
            out = sound(case)(rows)
            runs.append(1)
            if len(runs) == (16 if batch == 1 else 32):
                up(out, 0, 0, 3, 3)
            return out

        begins(checked(run, case, batch), AGAIN)

    def test_a_neighbour_that_leaks_in(self, case):
        """Wrong only next to another slice, and by one bit."""

        def run(rows):
            out = sound(case)(rows)
            if (rows != rows[0]).any():
                up(out, 3, 0, 3, 3)
            return out

        found = checked(run, case, 4)
        begins(found, NEIGHBOURS)
        assert found.reasons[0].endswith("(slots 3)")


class TestWrongEngines:
    def test_black(self, case, batch):
        shape = (batch, *case.reference.logits.shape[1:])
        found = checked(lambda rows: np.zeros(shape, rows.dtype), case, batch)
        pixels = found.compared_pixels
        dice = [f"{name}: Dice 0.0000 with the reference's {pixels[name]} pixels" for name in pixels]
        begins(found, "logits are off by", "another label in", "another label in", *dice)
        assert found.largest_flip_margin > 3

    def test_all_nan(self, case, batch):
        logits = case.reference.logits
        found = checked(lambda rows: np.full((batch, *logits.shape[1:]), np.nan, rows.dtype), case, batch)
        assert found.reasons[0].startswith(f"NaN or infinity instead of {logits.size} logits")
        assert any("Dice 0.0000" in reason for reason in found.reasons)
        json.dumps(found.to_json(), allow_nan=False)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_pixel_that_is_no_number_in_slot_3(self, case, value):
        def run(rows):
            out = sound(case)(rows)
            out[3, 0, 0, 0] = value  # in a corner: air, whatever the net
            return out

        found = checked(run, case, 4)
        for start in (IDENTICAL, NEIGHBOURS, "NaN or infinity instead of 8 logits"):
            assert any(r.startswith(start) and r.endswith("(slots 3)") for r in found.reasons), start


class TestAcceptance:
    @pytest.fixture
    def both(self, cases) -> tuple[Acceptance, Acceptance]:
        good = checked(sound(cases["one-step"]), cases["one-step"], 4)
        return good, checked(lambda rows: np.full_like(rows, np.nan), cases["liver"], 4)

    def test_json_and_back(self, both):
        for found in both:
            text = json.dumps(found.to_json(), allow_nan=False)
            assert Acceptance.from_json(json.loads(text)) == found
            assert json.loads(text)["accepted"] is found.accepted

    @pytest.mark.parametrize(
        "change",
        [
            {"accepted": False},
            {"reasons": ["something"]},
            {"reasons": "text"},
            {"reasons": None},
            {"dice": {"liver": "high"}},
            {"dice": {"heart": None}},
            {"dice": {"liver": 10**400}},
            {"compared_pixels": 3},
            {"surplus": 1},
        ],
    )
    def test_anything_else_is_no_acceptance(self, both, change):
        values = both[0].to_json()
        assert Acceptance.from_json({**values, **change}) is None
        for name in set(values) - {"criteria"}:
            assert Acceptance.from_json({k: v for k, v in values.items() if k != name}) is None
        for nothing in (None, {}, {"accepted": True}):
            assert Acceptance.from_json(nothing) is None

    def test_it_holds_for_one_device_one_driver_and_one_reference(self, both):
        for found in both:
            assert found.holds_for("a GPU", "1.2", found.files)
            for other in (("another GPU", "1.2"), ("a GPU", "1.3"), ("a GPU", None)):
                assert not found.holds_for(*other, found.files)
            assert not found.holds_for("a GPU", "1.2", {**found.files, "liver.onnx": "of another model"})
        older = Acceptance.from_json({**both[0].to_json(), "criteria": CRITERIA - 1})
        assert not older.holds_for("a GPU", "1.2", older.files)

    @pytest.mark.parametrize(
        "out",
        [
            np.zeros((4, 1, 64, 64), np.float32),
            np.zeros((3, 1, 64, 64), np.float16),
            np.zeros((4, 3, 64, 64), np.float16),
        ],
        ids=["type", "rows", "channels"],
    )
    def test_a_runner_that_gives_something_else(self, cases, out):
        with pytest.raises(ArgumentError, match=r"run: gave .*; expected float16 \(4, 1, 64, 64\)"):
            checked(lambda rows: out, cases["liver"], 4)

    def test_slices_of_another_net(self, cases):
        spec, (images, logits, *others) = cases["liver"].spec, vars(cases["liver"].reference).values()
        for wrong in (images[:0], logits[:0]), (images[:, :, :9], logits), (images, logits[1:]):
            with pytest.raises(ArgumentError, match="reference: got images"):
                checked(lambda rows: rows, Case(spec, Reference(*wrong, *others)), 4)


def test_an_engine_of_the_cpu_passes_the_same_gate():
    files = models.find("default")
    spec = files.spec.nets[1]
    engine, reference = open_reference(files, spec), references(files)[spec.role]
    run = lambda rows: logits_of(engine, rows)  # noqa: E731
    found = check(run, reference, spec=spec, precision=FP32, batch=2, device="a CPU")
    assert found.accepted, found
    assert str(found).startswith("accepted on a CPU: 8 slices in each of 2 slots, 0 pixels unlike ")


def test_pixels_of_the_liver_count_that_the_tumour_net_sees_as_zero():
    """Fat and the border of the liver lie below the window of the tumour net, and get labels all the same."""
    files = models.find("default")
    liver, tumour = files.spec.nets
    found = references(files)
    dark = (found["liver"].logits > liver.logit_threshold) & (found["tumour"].images == 0)
    case = Case(tumour, found["tumour"])
    wrong = np.where(dark, np.float32(50), case.reference.logits)
    assert dark.sum() > 100
    assert checked(sound(case), case, 2, FP32).accepted
    assert not checked(lambda rows: wrong[numbers(case, rows)], case, 2, FP32).accepted
