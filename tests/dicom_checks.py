"""What other programs make of DICOM objects: dciodvfy, highdicom and dcmqi."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest


def program(package: str, name: str) -> Path:
    """A program in a wheel of PyPI; the test is skipped without it."""
    module = pytest.importorskip(package)
    return Path(module.__file__).parent / "bin" / name


def complaints(path: Path) -> list[str]:
    """What dciodvfy says of a file: warnings and errors."""
    run = subprocess.run(
        [program("dicom3tools", "dciodvfy"), "-new", path], capture_output=True, text=True, check=False
    )
    lines = (run.stdout + run.stderr).splitlines()
    assert lines, "dciodvfy said nothing"
    return [line for line in lines if line.startswith(("Error", "Warning"))]


def errors(path: Path) -> list[str]:
    return [line for line in complaints(path) if line.startswith("Error")]


def labels_by_instance(path: Path, uids: list[str]) -> np.ndarray:
    """Labels 0 to 2 on the instances with these UIDs, as highdicom reads them from a SEG: [n, row, column]."""
    import highdicom

    seg = highdicom.seg.segread(path)
    numbers = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    return meanings(seg)[numbers]


def labels_by_frame(path: Path, uid: str, frames: list[int]) -> np.ndarray:
    """The same for frames, from 1, of a multi-frame instance."""
    import highdicom

    seg = highdicom.seg.segread(path)
    numbers = seg.get_pixels_by_source_frame(
        uid, frames, combine_segments=True, assert_missing_frames_are_empty=True
    )
    return meanings(seg)[numbers]


def labels_by_place(path: Path, positions: np.ndarray) -> np.ndarray:
    """The same for slices with their first voxel at ``positions``, LPS mm, whatever the frames refer to."""
    import highdicom

    seg = highdicom.seg.segread(path)
    result = np.zeros((len(positions), seg.Rows, seg.Columns), np.uint8)
    for frame, group in zip(
        seg.pixel_array.reshape(-1, seg.Rows, seg.Columns), seg.PerFrameFunctionalGroupsSequence, strict=True
    ):
        at = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        n = int(np.linalg.norm(positions - at, axis=1).argmin())
        assert np.allclose(positions[n], at, atol=1e-4)
        if seg.SegmentationType == "LABELMAP":
            number = frame
        else:
            groups = (
                group if "SegmentIdentificationSequence" in group else seg.SharedFunctionalGroupsSequence[0]
            )
            number = frame * groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        result[n] |= meanings(seg)[number]
    return result


def meanings(seg) -> np.ndarray:
    """Label of each number of a segment."""
    found = [0]
    for number in seg.segment_numbers:
        code = seg.get_segment_description(number).segmented_property_type
        found.append({"10200004": 1, "4147007": 2}[code.value])
    return np.array(found, np.uint8)


def points_by_dcmqi(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """Voxel centres, LPS mm, of each segment's label, as dcmqi has them."""
    import json

    import SimpleITK

    folder.mkdir()
    subprocess.run(
        [
            program("dcmqi", "segimage2itkimage"),
            "-t",
            "nrrd",
            "--inputDICOM",
            path,
            "--outputDirectory",
            folder,
        ],
        capture_output=True,
        check=True,
    )
    (meta,) = folder.glob("*meta.json")
    found = {}
    for (segment,) in json.loads(meta.read_text())["segmentAttributes"]:
        image = SimpleITK.ReadImage(folder / f"{segment['labelID']}.nrrd")
        inside = np.argwhere(SimpleITK.GetArrayViewFromImage(image) > 0)[:, ::-1]
        found[segment["SegmentLabel"]] = np.array(
            [image.TransformIndexToPhysicalPoint(index.tolist()) for index in inside]
        )
    return found
