"""What is done to slices before a net sees them: augmentation, synthetic lesions, the choice of samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label as components
from torch.nn import functional as F

from training.augment import augment, remove_liver
from training.data import Slices
from training.lesions import DARKEST_HU, add_gallbladder, add_lesions, paste_lesion
from training.lobes import hang_lobe
from training.sample import SHARES, Samples
from trtseg.fit import AIR_HU


def disc(radius=30, size=128):
    y, x = np.mgrid[:size, :size]
    return (y - 60) ** 2 + (x - 70) ** 2 < radius**2


def test_augmentation_keeps_image_and_label_together():
    """A disc whose label is itself must stay its own label wherever augmentation moves it."""
    hu = torch.from_numpy(np.where(disc(), 2000, AIR_HU).astype(np.int16))
    label = torch.from_numpy(disc().astype(np.uint8))
    sizes = []
    for seed in range(32):
        moved, labels = augment(hu, label, np.random.default_rng(seed))
        assert moved.shape == labels.shape == (64, 64)
        image = moved > 400
        both = (image & (labels == 1)).sum()
        assert (2 * both + 1) / (image.sum() + (labels == 1).sum() + 1) > 0.95
        sizes.append(int(labels.sum()))
    assert max(sizes) > 2 * min(sizes)  # it does move


def test_a_removed_liver_leaves_fat_and_no_label():
    hu, label = torch.full((128, 128), 100, dtype=torch.int16), torch.from_numpy(disc().astype(np.uint8))
    remove_liver(hu, label, np.random.default_rng(0))
    assert not label.any()
    inside = hu[torch.from_numpy(disc())]
    assert -180 < int(inside.min()) < int(inside.max()) < 0
    assert (hu[:20] == 100).all()


def liver_slice(rng):
    hu = np.full((256, 256), -100, np.int16)
    label = disc(80, 256).astype(np.uint8)
    hu[label == 1] = rng.normal(110, 12, int(label.sum())).astype(np.int16)
    return hu, label


def test_lesions_lie_in_the_liver_and_differ_from_it():
    darker = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        hu, label = liver_slice(rng)
        before, liver = hu.copy(), label.copy()
        add_lesions(hu, label, rng)
        assert ((label > 0) == (liver > 0)).all()  # tumour is part of the liver, and nothing else is
        assert (hu == before)[liver == 0].all()
        assert (label == 2).any()
        assert hu[label == 2].mean() > DARKEST_HU  # bile is darker
        inside, outside = hu[label == 2].astype(float), hu[label == 1].astype(float)
        darker += inside.mean() < outside.mean()
        # noise goes on inside: a flat patch would be a give-away
        assert inside.std() > 6 or len(inside) < 20
    assert 30 <= darker <= 40  # most lesions are darker


def test_a_pasted_lesion_differs_from_its_new_liver_as_it_did_from_its_old_one():
    """A disc 60 HU below a liver of 150 HU comes to livers of 110 HU, in other sizes and places."""
    y, x = np.mgrid[:256, :256]
    donor_label = disc(80, 256).astype(np.uint8)
    lesion = (y - 50) ** 2 + (x - 90) ** 2 < 12**2
    donor_label[lesion] = 2
    donor = np.where(donor_label > 0, 150, -100).astype(np.int16)
    donor[lesion] = 90
    before_donor = donor.copy(), donor_label.copy()
    sizes, places, differences = [], [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        hu, label = liver_slice(rng)
        before, liver = hu.copy(), label.copy()
        paste_lesion(hu, label, (donor, donor_label), rng)
        assert ((label > 0) == (liver > 0)).all()
        assert (hu == before)[liver == 0].all()
        found = label == 2
        sizes.append(found.sum())
        places.append(np.argwhere(found).mean(0))
        core = found & (F.max_pool2d(torch.from_numpy(~found)[None].float(), 9, 1, 4)[0].numpy() == 0)
        if core.any():
            differences.append(hu[core].mean() - 110)
    assert 0.4 * lesion.sum() < np.median(sizes) < 2 * lesion.sum()
    assert np.ptp(places, axis=0).min() > 60
    assert -72 - 3 < min(differences) < -55 < max(differences) < -48 + 3  # 60 HU times 0.8 to 1.2
    assert (donor == before_donor[0]).all()
    assert (donor_label == before_donor[1]).all()


def test_nothing_is_pasted_from_a_slice_without_lesion_or_liver():
    for donor_label in (np.zeros((64, 64), np.uint8), np.full((64, 64), 2, np.uint8)):
        hu, label = liver_slice(np.random.default_rng(0))
        before = hu.copy()
        paste_lesion(hu, label, (np.zeros((64, 64), np.int16), donor_label), np.random.default_rng(0))
        assert (hu == before).all()
        assert label.max() == 1


def test_a_lobe_hangs_down_apart_from_the_liver():
    """A bar of 150 HU to the left of the liver, one slice up, becomes an island in front, of its HU and label."""
    below = disc(50, 256).astype(np.uint8)
    above_label = below.copy()
    above_label[30:70, 100:200] = 1
    above_label[40:45, 170:190] = 2
    above = np.where(above_label > 0, 150, -100).astype(np.int16)
    kept = above.copy(), above_label.copy()
    sizes, rims = [], 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        hu, label = np.where(below > 0, 110, -90).astype(np.int16), below.copy()
        before = hu.copy()
        hang_lobe(hu, label, (above, above_label), rng)
        assert (hu == before)[below > 0].all()
        assert (label == below)[below > 0].all()
        island = (label > 0) & (below == 0)
        sizes.append(island.sum())
        if not island.any():
            assert (hu == before).all()
            continue
        assert components(label > 0)[1] == 2
        rows, columns = np.nonzero(island)
        assert rows.max() < 0.45 * 256
        assert columns.min() > 70  # left of the middle of the liver
        assert (label == 2).sum() <= 100
        assert np.median(hu[island]) == 150
        rims += (hu[~island & (below == 0)] < -95).any()
    assert np.median(sizes) > 1000
    assert 8 <= rims <= 28  # with and without fat around it
    assert (above == kept[0]).all()
    assert (above_label == kept[1]).all()


def test_no_lobe_hangs_down_where_there_is_none():
    hu, label = liver_slice(np.random.default_rng(0))
    behind = np.zeros_like(label)
    behind[200:, 100:200] = 1  # not in front
    for above_label in (np.zeros_like(label), disc(5, 256).astype(np.uint8), behind):
        before, mark = hu.copy(), label.copy()
        hang_lobe(hu, label, (hu.copy(), above_label), np.random.default_rng(5))
        assert (hu == before).all()
        assert (label == mark).all()


def test_a_gallbladder_lies_beside_the_liver_and_is_none_of_it():
    sizes = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hu, label = liver_slice(rng)
        before, mark = hu.copy(), label.copy()
        add_gallbladder(hu, label, rng)
        assert (label == mark).all()
        assert (hu == before)[label > 0].all()
        changed = hu != before
        assert changed.any()
        sizes.append(changed.sum())
        assert -10 < np.median(hu[changed]) < 30
        near = np.argwhere(changed)[:, None] - np.argwhere(label > 0)[None, ::7]
        assert np.hypot(*near.transpose(2, 0, 1)).min() < 16
    assert np.mean(sizes) > 300


def test_a_liver_too_small_for_lesions_stays_as_it_is():
    hu, label = np.full((64, 64), 100, np.int16), np.zeros((64, 64), np.uint8)
    label[:10, :10] = 1
    add_lesions(hu, label, np.random.default_rng(0))
    assert (hu == 100).all()
    assert label.max() == 1


@pytest.fixture
def slices():
    """Six slices: HU tells which is which. Two with tumour (patients p, q), two with liver (p), two with none."""
    hu = np.repeat(np.arange(6, dtype=np.int16) * 100, 64 * 64).reshape(6, 64, 64)
    label = np.zeros((6, 64, 64), np.uint8)
    label[:4, 16:48, 16:48] = 1
    label[:2, 24:40, 24:40] = 2
    group = np.array(["p", "q", "p", "p", "n", "n"])
    kinds = np.arange(6) < 4, np.arange(6) < 2
    return Slices(hu, label, np.arange(6), group, group, *kinds, np.array([1, 1, 1, 0, 1, 1], bool))


def test_a_sample_is_decided_by_its_number(slices):
    one, again, other = (Samples(slices, "liver", 0.5, seed) for seed in (0, 0, 1))
    for number in (0, 7, 10**9):
        assert all(torch.equal(a, b) for a, b in zip(one[number], again[number], strict=True))
    assert not all(torch.equal(one[n][0], other[n][0]) for n in range(8))
    assert (slices.hu[:, 0, 0] == np.arange(6) * 100).all()  # what is drawn is a copy


def drawn(samples, monkeypatch, count=600):
    """How often each slice is drawn."""
    monkeypatch.setattr("training.sample.augment", lambda hu, label, rng: (hu, label))
    monkeypatch.setattr("training.sample.remove_liver", lambda hu, label, rng: None)
    monkeypatch.setattr("training.sample.add_lesions", lambda hu, label, rng: None)
    monkeypatch.setattr("training.sample.add_gallbladder", lambda hu, label, rng: None)
    return np.bincount([int(samples[n][0][0, 0]) // 100 for n in range(count)], minlength=6) / count


@pytest.mark.parametrize("method", SHARES)
def test_shares_of_what_is_drawn(slices, method, monkeypatch):
    got = drawn(Samples(slices, method, 0.5, 0), monkeypatch)
    tumour, healthy, empty = SHARES[method]
    assert got[:2].sum() == pytest.approx(tumour, abs=0.06)
    assert got[2:4].sum() == pytest.approx(healthy, abs=0.06)
    assert got[4:].sum() == pytest.approx(empty, abs=0.06)
    # slice 3 does not know about tumours: good for the liver only
    assert (got[3] > 0) == (method == "liver")


def test_lesions_are_pasted_from_slices_with_tumour_only(slices, monkeypatch):
    """And as often as was asked for, as gallbladders are; without being asked for, samples are what they were."""
    donors, added = [], []
    monkeypatch.setattr("training.sample.augment", lambda hu, label, rng: (hu, label))
    monkeypatch.setattr("training.sample.add_gallbladder", lambda hu, label, rng: added.append(1))
    monkeypatch.setattr(
        "training.sample.paste_lesion",
        lambda hu, label, donor, rng: donors.append(int(donor[0][0, 0]) // 100),
    )
    plain, pasting = (
        Samples(slices, "tumour", 0.0, 0),
        Samples(slices, "tumour", 0.0, 0, paste=0.25, gallbladders=0.5),
    )
    for number in range(400):
        pasting[number]
    assert set(donors) == {0, 1}
    assert len(donors) / 400 == pytest.approx(0.25, abs=0.07)
    assert len(added) / 400 == pytest.approx(0.5, abs=0.08)
    again = Samples(slices, "tumour", 0.0, 0, paste=0.0, gallbladders=0.0)
    assert all(torch.equal(a, b) for n in range(20) for a, b in zip(plain[n], again[n], strict=True))


def test_lobes_come_from_further_up_in_the_same_scan(monkeypatch):
    """And as often as there is a slice to hang them from."""
    number = np.repeat(np.arange(60, dtype=np.int16), 64 * 64).reshape(60, 64, 64)
    label = np.ones((60, 64, 64), np.uint8)
    case = np.array(["p"] * 30 + ["q"] * 30)
    slices = Slices(
        number, label, np.arange(60), case, case, np.ones(60, bool), np.zeros(60, bool), np.ones(60, bool)
    )
    pairs = []
    monkeypatch.setattr(
        "training.sample.hang_lobe",
        lambda hu, label, above, rng: pairs.append((int(hu[0, 0]), int(above[0][0, 0]))),
    )
    samples = Samples(slices, "liver", 0.0, 0, lobes=1.0)
    for n in range(200):
        samples[n]
    below, above = np.array(pairs).T
    assert (case[below] == case[above]).all()
    assert 2 <= (above - below).min() <= 4
    assert 18 <= (above - below).max() <= 24
    assert 60 < len(pairs) < 160


def test_patients_weigh_by_the_root_of_their_slices(slices, monkeypatch):
    many = Slices(
        slices.hu,
        slices.label,
        np.array([0] * 9 + [1]),
        np.array(["p"] * 9 + ["q"]),
        np.array(["p"] * 9 + ["q"]),
        *(np.ones(10, bool),) * 3,
    )
    got = drawn(Samples(many, "tumour", 0.0, 0), monkeypatch)
    assert got[0] == pytest.approx(3 / 4, abs=0.05)  # 9 ** 0.5 to 1
