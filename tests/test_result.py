"""Segmentation: its numbers by hand, and its files complete or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import weakref
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_made import save_series

from trtseg.cohort.table import row_of
from trtseg.errors import ArgumentError, OutputError
from trtseg.io import load, read_labels
from trtseg.io.nifti import peek_nifti
from trtseg.report.pictures import preview_png
from trtseg.result import Segmentation
from trtseg.volume import Geometry, Volume

# Input index (i, j, k) runs right to left, back to front, head to feet: flips on two canonical axes.
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 4, 0, -20], [0, 0, -5, 100], [0, 0, 0, 1]])


def make_volume(shape: tuple[int, int, int] = (4, 3, 2), name: str = "ct.nii.gz") -> Volume:
    geometry = Geometry.from_affine(shape, AFFINE)
    hu = np.full(geometry.canonical_shape, 40, np.int16)
    return Volume(hu, geometry.canonical_affine(), geometry, name)


@pytest.fixture
def result() -> Segmentation:
    labels = np.zeros((2, 3, 4), np.uint8)  # [Z, Y, X]
    labels[0, 1:, :2] = 1
    labels[0, 1, 0] = 2
    return Segmentation.measure(
        labels,
        make_volume(),
        steps={"fill_holes": "off"},
        timings={"read": 0.25},
        provenance={"model": "test"},
    )


def test_report_by_hand(result: Segmentation) -> None:
    report = result.report()
    assert [warning["code"] for warning in report.pop("warnings")] == ["liver-none"]
    measure = report["timings_s"].pop("measure")
    assert report["timings_s"].pop("total") == pytest.approx(0.25 + measure, abs=2e-4)
    assert report == {
        "schema": 1,
        "notice": "not for clinical use",
        "input": {"name": "ct.nii.gz", "shape": [4, 3, 2], "spacing_mm": [2.0, 4.0, 5.0]},
        "liver_ml": 0.16,  # 4 voxels of 2 x 4 x 5 mm
        "tumour_ml": 0.04,
        "tumour_burden": 0.25,
        "lesion_count": 1,
        "largest_mm": 0.0,
        "highest_probability": None,
        "lesions": [
            {
                "volume_ml": 0.04,
                "voxels": 1,
                "diameter_mm": 0.0,
                "short_mm": 0.0,
                "diameter_slice": 0,
                "centroid_ras_mm": [10.0, -16.0, 95.0],  # input voxel (0, 1, 1)
                "slices": [0, 0],
                "probability": None,
            }
        ],
        "postprocess": {"fill_holes": "off"},
        "timings_s": {"read": 0.25},
        "provenance": {"model": "test"},
    }


def test_how_a_report_rounds(result: Segmentation) -> None:
    lesion = dataclasses.replace(
        result.lesions[0],
        volume_ml=1.23456789,
        diameter_mm=12.345678,
        short_mm=7.876543,
        centroid=(-1.23456, 2.34567, 3.45678),
        probability=0.87654321,
    )
    grid = Geometry.from_affine((4, 3, 2), np.diag([0.976562512, 0.976562512, 1.25, 1]))
    made = dataclasses.replace(
        result,
        geometry=grid,
        liver_ml=1500.123456,
        tumour_ml=17.654321,
        lesions=(lesion,),
        timings={"read": 0.1234567},
    ).report()
    assert made["timings_s"] == {"read": 0.1235, "total": 0.1235}
    assert made["input"]["spacing_mm"] == [0.976563, 0.976563, 1.25]
    assert (made["liver_ml"], made["tumour_ml"], made["tumour_burden"]) == (1500.1235, 17.6543, 0.011769)
    (told,) = made["lesions"]
    assert (told["volume_ml"], told["diameter_mm"], told["short_mm"]) == (1.2346, 12.3457, 7.8765)
    assert (told["centroid_ras_mm"], told["probability"]) == ([-1.23, 2.35, 3.46], 0.8765)


def test_the_row_of_a_cohort_has_the_largest_and_the_likeliest_of_lesions_of_which_some_have_no_probability(
    result: Segmentation,
) -> None:
    lesions = tuple(
        dataclasses.replace(result.lesions[0], diameter_mm=diameter, probability=probability)
        for diameter, probability in ((4.5, 0.123456), (12.345678, 0.87654321), (7.0, None))
    )
    made = dataclasses.replace(result, lesions=lesions, liver_ml=1500.123456, tumour_ml=17.654321)
    row = row_of(made, 1.23456)
    assert (row["lesion_count"], row["largest_mm"], row["highest_probability"]) == (3, 12.3457, 0.8765)
    assert (row["liver_ml"], row["tumour_ml"], row["tumour_burden"]) == (1500.1235, 17.6543, 0.011769)
    assert (row["slices"], row["slice_mm"], row["seconds"]) == (2, 5.0, 1.235)
    assert row_of(result, 1.0)["highest_probability"] == ""  # of a one-step model


def test_labels_are_a_view_on_the_grid_of_the_input(result: Segmentation) -> None:
    assert result.labels.shape == (4, 3, 2)
    assert result.labels[0, 1, 1] == 2
    assert np.shares_memory(result.labels, result.canonical)
    assert np.array_equal(result.affine, AFFINE)


def test_no_liver() -> None:
    result = Segmentation.measure(np.zeros((2, 3, 4), np.uint8), make_volume())
    report = result.report()
    assert (report["liver_ml"], report["tumour_burden"], report["lesions"]) == (0, 0, [])
    assert repr(result) == "<Segmentation of ct.nii.gz: no liver found>"


def test_labels_of_another_grid_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"labels: got shape \(4, 3, 2\); expected the volume's \(2, 3,"):
        Segmentation.measure(np.zeros((4, 3, 2), np.uint8), make_volume())


def test_save_round_trip(result: Segmentation, tmp_path: Path) -> None:
    path, report, preview = tmp_path / "seg.nii.gz", tmp_path / "seg.json", tmp_path / "seg.png"
    result.save(path, report=report, preview=preview)
    image: Any = nib.load(path)
    assert np.array_equal(np.asarray(image.dataobj), result.labels)
    assert np.array_equal(image.affine, AFFINE)
    made = dataclasses.replace(result, provenance={"fingerprint": "abc1"})
    made.save(tmp_path / "seg.nii.gz")
    said, _ = peek_nifti(tmp_path / "seg.nii.gz")
    assert said == ("abc1", f"{zlib.crc32(result.canonical.tobytes()):08x}")
    assert json.loads(report.read_text("utf-8")) == result.report()
    assert preview.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seg.json", "seg.nii.gz", "seg.png"]


def test_single_files(result: Segmentation, tmp_path: Path) -> None:
    result.save_report(tmp_path / "r.json")
    result.save_preview(tmp_path / "p.png")
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["liver_ml"] == 0.16
    texts = [warning.text for warning in result.warnings]
    summary = "liver 0.2 mL, tumour 0.0 mL (25.0%), 1 lesion"
    expected = preview_png(make_volume(), result.canonical, summary, texts)
    assert (tmp_path / "p.png").read_bytes() == expected


def test_a_result_keeps_its_ct_by_reference_and_can_let_go_of_it(tmp_path: Path) -> None:
    volume = make_volume()
    result = Segmentation.measure(np.zeros((2, 3, 4), np.uint8), volume)
    assert result.volume is volume
    kept = weakref.ref(volume)
    result = dataclasses.replace(result, volume=None)
    del volume
    assert kept() is None
    result.save(tmp_path / "seg.nii.gz", report=tmp_path / "r.json")
    with pytest.raises(
        ArgumentError, match=r"preview, html: got a result without its CT; .*replace\(result,"
    ):
        result.save_preview(tmp_path / "p.png")
    for more in ("preview", "html"):  # before the labels are written, which takes a while
        with pytest.raises(ArgumentError, match="got a result without its CT"):
            result.save(tmp_path / "no folder" / "seg.nii.gz", **{more: tmp_path / "p"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "seg.nii.gz"]


def test_the_report_of_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.nii")
    result = Segmentation.measure(np.zeros((2, 3, 4), np.uint8), make_volume(name=name))
    result.save_report(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["input"]["name"] == "caf?.nii"


@pytest.mark.parametrize(
    ("arguments", "volume"),
    [
        ({"report": "missing/r.json"}, make_volume()),
        ({"report": "seg.nii.gz"}, make_volume()),
        ({"preview": "p.png"}, None),
        ({"preview": "p.png"}, make_volume((5, 3, 2))),  # of another CT
    ],
    ids=["no folder", "twice the same path", "no volume", "another volume"],
)
def test_all_files_or_none(
    result: Segmentation, tmp_path: Path, arguments: dict[str, str], volume: Volume | None
) -> None:
    (tmp_path / "seg.nii.gz").write_bytes(b"earlier")
    result = dataclasses.replace(result, volume=volume)
    with pytest.raises((OutputError, ArgumentError)):
        result.save(tmp_path / "seg.nii.gz", **{name: tmp_path / path for name, path in arguments.items()})
    assert [p.name for p in tmp_path.iterdir()] == ["seg.nii.gz"]
    assert (tmp_path / "seg.nii.gz").read_bytes() == b"earlier"


def test_a_picture_of_earlier_that_cannot_be_removed_is_an_output_error(tmp_path: Path) -> None:
    ct = np.full((4, 20, 24), 60, np.int16)
    ct[:, :5] = -1000
    volume = load(save_series(tmp_path / "ct", ct))
    made = Segmentation.measure(np.ones(volume.array.shape, np.uint8), volume)
    pictures = made.save_dicom(tmp_path, ["sc"])
    for path in pictures:
        path.write_bytes(b"earlier")
    (tmp_path / f"sc_{len(pictures) + 1:04d}.dcm").mkdir()  # in the place of a picture
    with pytest.raises(
        OutputError, match=r"sc_\d+\.dcm: is a folder, .* move it away\. Nothing was written$"
    ):
        made.save_dicom(tmp_path, ["sc"])
    assert {path.read_bytes() for path in pictures} == {b"earlier"}


@pytest.mark.parametrize("kinds", [["seg"], ["seg", "sc"]])
def test_what_is_written_beside_dicom_objects(tmp_path: Path, kinds: list[str]) -> None:
    ct = np.full((4, 20, 24), 60, np.int16)
    ct[:, :5] = -1000
    volume = load(save_series(tmp_path / "DOE_JANE", ct))
    made = Segmentation.measure(np.ones(volume.array.shape, np.uint8), volume)
    (tmp_path / "sc_0005.dcm").write_bytes(b"of an earlier run")
    beside: dict[str, Any] = {key: tmp_path / f"a.{key}" for key in ("report", "preview", "html")}
    written = [path.name for path in made.save_dicom(tmp_path, kinds, **beside)]
    pictures = [f"sc_{n:04}.dcm" for n in range(1, 5)] if "sc" in kinds else ["sc_0005.dcm"]
    assert written == ["seg.dcm", *(pictures if "sc" in kinds else [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["DOE_JANE", "seg.dcm", *pictures, *(path.name for path in beside.values())]
    )
    assert json.loads(beside["report"].read_text("utf-8")) == made.report()
    assert beside["preview"].read_bytes().startswith(b"\x89PNG")
    page = beside["html"].read_text("utf-8")
    assert ("</html>" in page, "DOE_JANE" in page) == (True, False)
    made.save(tmp_path / "seg.nii.gz", html=tmp_path / "b.html", keep_identity=True)
    assert "DOE_JANE" in (tmp_path / "b.html").read_text("utf-8")
    light = dataclasses.replace(made, volume=None)  # pictures of the CT need it, and no other object
    assert [path.name for path in light.save_dicom(tmp_path, ["seg", "sr"])] == ["seg.dcm", "sr.dcm"]
    for key in ("preview", "html"):
        picture: dict[str, Any] = {key: tmp_path / f"c.{key}"}
        with pytest.raises(ArgumentError, match="got a result without its CT"):
            light.save_dicom(tmp_path, ["seg"], **picture)
    assert not list(tmp_path.glob("c.*"))


def test_a_report_that_is_not_json_leaves_nothing(result: Segmentation, tmp_path: Path) -> None:
    result.provenance["score"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        result.save(tmp_path / "seg.nii.gz", report=tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_another_file_type_is_refused(result: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=rf"^{tmp_path}/seg\.hdr: cannot write this file type; expected .nii.gz, "
    ):
        result.save(tmp_path / "seg.hdr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [None, 5, b"seg.nii.gz"])
def test_what_is_no_path_is_an_argument_error(result: Segmentation, tmp_path: Path, path: Any) -> None:
    for call in (result.save, result.save_report, result.save_preview, read_labels):
        with pytest.raises(
            ArgumentError, match=f"^path: got a {type(path).__name__}; expected a file's path"
        ):
            call(path)
    with pytest.raises(ArgumentError, match="path: got a int"):
        result.save(tmp_path / "seg.nii.gz", report=5)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_notebook_gets_numbers_warnings_and_a_montage(result: Segmentation) -> None:
    shown = dataclasses.replace(result, name="<b>.nii", volume=make_volume(name="<b>.nii"))._repr_html_()
    assert "liver 0.2 mL, tumour 0.0 mL (25.0%), 1 lesion" in shown
    assert "&lt;b&gt;.nii" in shown
    assert "<b>.nii" not in shown
    assert result.warnings[0].text.partition("'")[0] in shown
    assert "data:image/png;base64," in shown
    without = dataclasses.replace(result, volume=None)
    assert "base64" not in without._repr_html_()
    with pytest.raises(ArgumentError, match="got a result without its CT"):
        without.view()
    page = result.view(300)
    assert "sandbox=" in page._repr_html_()
    assert len(repr(page)) < 100, "a terminal, and a notebook beside the frame, have it too"


def test_the_page_of_a_dicom_series_tells_nobody_who_the_patient_is(tmp_path: Path) -> None:
    ct = np.full((4, 20, 24), 60, np.int16)
    ct[:, :5] = -1000
    folder = save_series(tmp_path / "DOE_JANE", ct, AccessionNumber="ACC77")
    volume = load(folder)
    made = Segmentation.measure(np.ones(volume.array.shape, np.uint8), volume)
    made.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page = (tmp_path / "seg.html").read_text("utf-8")
    assert not [secret for secret in ("Secret", "SECRET1", "ACC77", "1.2.3.4", "DOE_JANE") if secret in page]
    assert made.warnings
