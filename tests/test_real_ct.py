"""The shipped model on real CT; skipped visibly where the data is not beside the repository."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import tiny

import trtseg
from training.evaluate import FAR_FROM_LIVER, validating, without_liver
from trtseg import models, reference
from trtseg.engines import open_engine
from trtseg.engines.processor import native_bf16
from trtseg.phantom import abdomen


@pytest.fixture(scope="module")
def segmenter():
    return trtseg.Segmenter()


REPORTING_ITS_PEAK = r"""
import atexit, pathlib, re
atexit.register(lambda: print(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]))
from trtseg.cli import main
main()
"""


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_healthy_liver(segmenter, shared_data):
    result = segmenter.segment(shared_data / "chaos3" / "volume.nii.gz")
    truth = np.asanyarray(nib.load(shared_data / "chaos3" / "segmentation.nii.gz").dataobj)
    assert dice(result.labels >= 1, truth >= 1) >= 0.96
    assert result.tumour_ml < 5


def test_skipping_is_exact_for_the_shipped_nets(segmenter, shared_data):
    volume = trtseg.load(shared_data / "chaos3" / "volume.nii.gz")
    files = models.find("default")
    liver, tumour = (open_engine(files, s, precision=segmenter.precision) for s in files.spec.nets)
    slices, spacing = volume.array[np.r_[0:8, 70:78]], volume.spacing[1:]
    got = segmenter.label(slices, spacing=spacing)
    assert (segmenter.label(slices, spacing=spacing) == got).all()
    fit = liver.spec.fit_volume(slices, spacing)
    hu, x1 = reference.prepare(slices, fit, liver.spec.window)
    l1, l2 = np.empty_like(x1), np.empty_like(x1)
    liver.run(x1, l1)
    x2, pixels = reference.gate(l1, hu, liver.spec.logit_threshold, tumour.spec.window)
    tumour.run(x2, l2)
    expected, _ = reference.label(l1, l2, (liver.spec.logit_threshold, tumour.spec.logit_threshold), fit)
    assert (pixels == 0).any()
    assert (got == expected).all()


@pytest.mark.skipif(not native_bf16(), reason="this processor has no BF16")
def test_precisions_agree_where_the_nets_are_sure(shared_data):
    volume = trtseg.load(shared_data / "chaos3" / "volume.nii.gz")
    fp32, bf16 = (trtseg.Segmenter(precision=p).segment(volume).canonical for p in ("fp32", "bf16"))
    assert dice(fp32 >= 1, bf16 >= 1) > 0.995


def test_slices_without_liver(segmenter, shared_data):
    """Head, upper chest, pelvis of patients that training never saw, each slice taken to be 5 mm thick."""
    empty = [case for case in validating(shared_data) if case.body_part in FAR_FROM_LIVER]
    assert len(empty) > 20
    false = [part for part, ml in without_liver(segmenter, empty) if ml > 5]
    assert len(false) <= 0.01 * len(empty), false


@pytest.mark.parametrize("model", ["tiny", pytest.param("default", marks=pytest.mark.slow)])
def test_memory_of_a_long_ct(tmp_path, model):
    """800 slices of 512x512: at most the int16 volume, the labels, and 600 MB; nets of one convolution stay below, too.

    What the shipped nets take besides does not depend on the number of slices.
    """
    folder, most = (tiny.cascade_model(tmp_path / "tiny"), 300) if model == "tiny" else (model, 600)
    part = abdomen(shape=(50, 512, 512), spacing=(5.0, 0.75, 0.75)).ct
    ijk = np.concatenate([part] * 16).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(ijk, np.diag([-0.75, -0.75, 1.0, 1.0])), tmp_path / "ct.nii")
    # its own word for its peak: what wait4 says may be that of the process it was forked from
    command = [
        sys.executable,
        "-c",
        REPORTING_ITS_PEAK,
        "segment",
        "--quiet",
        str(tmp_path / "ct.nii"),
        "--model",
    ]
    done = subprocess.run(
        [*command, str(folder), "-o", str(tmp_path / "seg.nii.gz")],
        check=True,
        capture_output=True,
        text=True,
    )
    peak = int(done.stdout.split()[-1]) / 1024  # MiB
    assert (tmp_path / "seg.nii.gz").exists()
    volume = ijk.size * 2 / 2**20
    assert peak < volume + volume / 2 + most * 1e6 / 2**20
