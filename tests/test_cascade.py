"""The cascade on the CPU: the cases that it shares with a GPU, and the order of its stages and skipped slices."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from cascade_cases import BOTH
from cascade_nets import LIVER, SPACING, TUMOUR, CpuBackend, CpuEngine, ct, expected

from trtseg import models
from trtseg.cascade import cpu
from trtseg.cascade.base import CHUNK
from trtseg.cascade.cpu import CpuCascade
from trtseg.engines import open_engine
from trtseg.phantom import abdomen


@pytest.mark.parametrize("case", BOTH)
def test_case(case):
    BOTH[case](CpuBackend())


def test_skipping_slices_without_liver_changes_nothing():
    seen = []

    class Tumour(CpuEngine):
        def run(self, src, dst, stream=0, *, wanted=None):
            assert src.any(axis=(1, 2, 3)).all()
            seen.append(len(src))
            super().run(src, dst, wanted=wanted)  # gives nonsense where it is not wanted

    hu = ct(CHUNK + 8)
    cascade = CpuCascade(CpuEngine(LIVER), Tumour(TUMOUR))
    cascade._l2[:] = np.nan  # the buffer's logits of a skipped slice
    labels, _ = cascade.run(hu, SPACING)
    wanted = expected(hu, np.float32)
    assert (labels == wanted).all()
    assert sum(seen) == np.count_nonzero((wanted > 0).any((1, 2))) < len(hu)


def test_timings_and_progress_of_a_volume():
    hu, told = ct(CHUNK + 5), []
    cascade = CpuCascade(CpuEngine(LIVER), CpuEngine(TUMOUR))
    _, timings = cascade.run(hu, SPACING, done=told.append)
    assert told == [CHUNK, len(hu)]
    assert list(timings) == ["prepare", "liver net", "gate", "tumour net", "label"]
    assert min(timings.values()) >= 0


def test_logits_that_are_left_out_change_no_label(monkeypatch):
    files, scan = models.find("default"), abdomen((6, 160, 200), (20.0, 2.0, 2.0), seed=1, lesions=6).ct
    with closing(
        CpuCascade(*(open_engine(files, spec, precision="fp32") for spec in files.spec.nets))
    ) as one:
        some, _ = one.run(scan, (2.0, 2.0))
        monkeypatch.setattr(cpu, "with_neighbours", np.ones_like)
        every, _ = one.run(scan, (2.0, 2.0))
    assert set(np.unique(some)) == {0, 1, 2}
    assert (some == every).all()
