"""The slices that training reads out of a store, here and in another process."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from training_data import case

from training import data
from training.prepare import Settings, prepare
from trtseg.errors import InputError


@pytest.fixture
def root(tmp_path):
    prepare([case("a", "A"), case("b", "B", seed=1), case("c", "C", seed=2)], tmp_path / "s", Settings(64))
    return tmp_path / "s"


def same(one, other):
    assert len(one) == len(other)
    for i in range(len(one)):
        for a, b in zip(one[i], other[i], strict=True):
            assert (a == b).all()
            assert a.dtype == b.dtype
    for name in ("index", "case", "group", "has_liver", "has_tumour", "knows_tumour"):
        assert (getattr(one, name) == getattr(other, name)).all()


def test_slices_travel_as_paths_and_not_as_a_copy_of_the_store(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root.parent)
    train, subsets = data.read(root.relative_to(root.parent), 64)
    monkeypatch.chdir("/")  # the other process may run elsewhere
    assert len(train) == 12
    for slices in (train, subsets["A"], train.where(train.has_tumour)):
        packed = pickle.dumps(slices)
        assert len(packed) < 5000 < train.hu.nbytes
        there = pickle.loads(packed)
        same(there, slices)
        assert isinstance(there.hu, np.memmap)
        assert isinstance(there.label, np.memmap)
        assert not there.hu.flags.writeable
        same(pickle.loads(pickle.dumps(there)), slices)  # and on from there


def test_a_store_that_went_or_changed_meanwhile_is_an_error(root):
    train, _ = data.read(root, 64)
    packed = pickle.dumps(train)
    prepare([case("a", "A"), case("b", "B", seed=1)], root, Settings(64))
    with pytest.raises(InputError, match=r"hu\.npy: got int16 \(12, 64, 64\); expected int16 \(18, 64, 64\)"):
        pickle.loads(packed)
    os.unlink(root / "hu.npy")
    with pytest.raises(InputError, match=r"hu\.npy: cannot be opened"):
        pickle.loads(packed)
