"""Damaged DICOM files: each is refused in a sentence, or handled; nothing crashes, hangs or takes much memory."""

from __future__ import annotations

import base64
import math
import random
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import dicom_made as made
import numpy as np
import pydicom
import pytest
from dicom_damage import damaged
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from test_dicom_pixels import HTJ2K, LOSSLESS, PICTURE, coded

from trtseg.errors import InputError
from trtseg.io import load
from trtseg.io.dicom import find, list_series, read_dicom_series, read_slice
from trtseg.phantom import abdomen

CT = abdomen(shape=(4, 40, 52), spacing=(40.0, *made.SPACING), seed=0, lesions=2).ct
SECONDS, BYTES = 10, 64 << 20  # the machine may be busy


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bytes of a file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    large = np.tile(PICTURE, (4, 4))
    datasets = [
        coded(HTJ2KLossless, base64.b85decode(HTJ2K)),
        coded(JPEGLosslessSV1, base64.b85decode(LOSSLESS)),
        made.enhanced(CT, [0.0, 40.0, 80.0, 120.0], [1] * 4),
    ]
    for syntax in (None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        datasets.append(made.instance(PICTURE))
        datasets[-1].file_meta.TransferSyntaxUID = syntax or pydicom.uid.ExplicitVRLittleEndian
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        datasets.append(made.instance(large))
        datasets[-1].compress(syntax, generate_instance_uid=False)
    return [made.save(folder / str(n), dataset).read_bytes() for n, dataset in enumerate(datasets)]


@contextmanager
def little_memory():
    """Let this process take `BYTES` more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_300_damaged_files(files, tmp_path):
    rng, refused, path = random.Random(5), [], tmp_path / "slice"
    for data in files:
        path.write_bytes(data)
        read_slice(path)  # imports the decoders, which take memory
    with little_memory():
        for n in range(300):
            path.write_bytes(damaged(files[n % len(files)], rng))
            start = time.monotonic()
            try:
                _, hu = read_slice(path)
                assert (hu.dtype, hu.ndim) in ((np.int16, 2), (np.int16, 3))
            except InputError as error:
                refused.append(str(error))
            assert time.monotonic() - start < SECONDS, n
    assert 100 < len(refused) < 200  # damage to what nobody reads is none
    assert all(text.startswith(f"{path}: ") and "SECRET" not in text.upper() for text in refused)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_in_its_series(tmp_path):
    """The volume has all slices, or there is none."""
    folder = made.save_series(tmp_path / "ct", CT)
    whole = (folder / "002").read_bytes()
    rng, refused = random.Random(6), []
    for n in range(60):
        (folder / "002").write_bytes(damaged(whole, rng))
        try:
            assert load(folder).array.shape == CT.shape, n
        except InputError as error:
            refused.append(str(error))
    assert 10 < len(refused) < 50
    assert not any("SECRET" in text.upper() for text in refused)


@pytest.mark.parametrize("file", ["001", "004"])
@pytest.mark.parametrize(
    "damage",
    [
        {"SeriesInstanceUID": "1.2.3.5"},
        {"FrameOfReferenceUID": "1.9"},
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        {"PixelSpacing": [0.7, 0.7]},
        {"Rows": 16},
    ],
)
def test_a_slice_at_an_end_with_another_header_is_never_lost_silently(tmp_path, file, damage):
    folder = made.save_series(tmp_path / "ct", CT)
    z = 4 - int(file)
    plane = CT[z, :16] if "Rows" in damage else CT[z]
    made.save(folder / file, made.instance(plane, 100 + z * 40, **damage))
    for path in (folder, folder / "002"):
        (warning,) = load(path).warnings
        assert warning.code == "slices-unplaced"
        assert warning.text.startswith("1 CT slice beside an end of the CT could not be joined to it")
    made.save(folder / file, made.instance(plane, 100 + z * 40 + math.copysign(40, z - 1), **damage))
    assert load(folder).warnings == (), "a step farther away it is none of this volume"


@pytest.mark.parametrize(("places", "count"), [((0, 7), 2), ((6, 7), 1), ((0, 1, 7), 2)])
def test_slices_at_the_ends_that_lost_their_series_are_told_of(tmp_path, places, count):
    """Several of them look like a series of their own; only those next to an end are counted."""
    ct = np.concatenate([CT, CT])
    folder = made.save_series(tmp_path / "ct", ct)
    for z in places:
        lost = made.instance(ct[z], 100 + z * 40, SeriesInstanceUID=None)
        made.save(folder / f"{len(ct) - z:03}", lost)
    volume = load(folder)
    assert len(volume.array) == len(ct) - len(places)
    (text,) = (warning.text for warning in volume.warnings if warning.code == "slices-unplaced")
    assert text.startswith(
        f"{count} CT slice{'s' * (count > 1)} beside an end of the CT could not be joined to it"
    )


@pytest.mark.parametrize("file", ["001", "002", "004"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            {"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]},
            "slices of different orientation or pixel spacing",
        ),
        ({"PixelSpacing": [8.0, 7.1]}, "slices of different orientation or pixel spacing"),
        ({"PixelSpacing": [7.9, 7.0]}, "slices of different orientation or pixel spacing"),
        ({"Rows": 16}, "slices of (40|16) x 52 and of (40|16) x 52 pixels"),
    ],
)
def test_files_that_were_named_as_one_series_and_are_of_two_grids_are_refused(
    tmp_path, file, damage, message
):
    folder = made.save_series(tmp_path, CT)
    z = 4 - int(file)
    made.save(folder / file, made.instance(CT[z, :16] if "Rows" in damage else CT[z], 100 + z * 40, **damage))
    with pytest.raises(InputError, match=message):
        read_dicom_series(sorted(folder.iterdir()))


def test_an_intercept_that_some_slices_lack_is_refused(tmp_path):
    folder = made.save_series(tmp_path / "ct", CT)
    made.save(folder / "002", made.instance(CT[2], 100 + 2 * 40, RescaleIntercept=None))
    with pytest.raises(InputError, match="slices with RescaleIntercept and slices without"):
        load(folder)
    made.save_series(folder, CT, RescaleIntercept=None)
    assert np.array_equal(load(folder).array, CT)


@pytest.mark.parametrize("content", [b"", bytes(4096)], ids=["empty", "zeros"])
def test_spoilt_files_that_are_named_like_slices_are_told_of(tmp_path, content):
    folder = made.save_series(tmp_path / "ct", CT)
    for name in ("VERSION", "001.txt", "README1", ".004"):
        (folder / name).write_bytes(content)
    (folder / "005").mkdir()
    assert load(folder).warnings == ()
    for name in ("000", "001"):
        (folder / name).write_bytes(content)
    for path in (folder, folder / "002"):
        volume = load(path)
        assert len(volume.array) == 3
        (warning,) = volume.warnings
        assert (warning.code, warning.text[:20]) == ("slices-unplaced", "2 files named like s")
        assert "ct" not in warning.text.split(), "what warnings say is shown on pages without a name"


def test_files_of_other_series_are_not_opened_again_to_find_spoilt_ones(tmp_path, monkeypatch):
    """On a slow network folder each opening counts."""
    folder = made.save_series(tmp_path / "ct", CT)
    for n in range(3):
        other = made.instance(CT[n], 100 + n * 80, SeriesInstanceUID="1.2.3", SeriesDescription="THORAX")
        made.save(folder / f"1{n}", other)
    looked = []
    monkeypatch.setattr(find, "looks_like_dicom", lambda first: looked.append(first) or True)
    assert load(folder).array.shape == CT.shape
    assert len(looked) == len(CT) + 3


def test_a_damaged_file_at_the_end_of_its_series_is_never_lost_silently(tmp_path):
    folder = made.save_series(tmp_path / "ct", CT)
    lost = made.instance(CT[3], 100 + 3 * 40, SeriesInstanceUID=None, ImagePositionPatient=None)
    made.save(folder / "001", lost)
    volume = load(folder)
    assert len(volume.array) == 3
    assert [warning.code for warning in volume.warnings] == ["slices-unplaced"]
    assert "the series: no ImagePositionPatient" in volume.warnings[0].text
    assert "001" not in volume.warnings[0].text, "what warnings say is shown on pages without a name"
    assert "001: no ImagePositionPatient" in "".join(one.reason for one in list_series(folder))
    made.save(folder / "001", made.instance(CT[3], 100 + 3 * 40, ImagePositionPatient=None))
    with pytest.raises(
        InputError, match="001: no ImagePositionPatient; expected slices whose place is known"
    ):
        load(folder)
    (folder / "001").unlink()
    (folder / "deep").mkdir()
    (folder / "deep" / "001.dcm").write_bytes(b"")
    volume = load(folder)
    assert len(volume.array) == 3
    assert [warning.code for warning in volume.warnings] == ["slices-unplaced"]
    assert (
        "1 file named like slices of the CT or like DICOM are empty or none. Vol" in volume.warnings[0].text
    )
    with pytest.raises(InputError, match=r"001\.dcm: (cannot be read as|is no) DICOM"):
        load(folder / "deep" / "001.dcm")
