"""What the place of a CT on the net's grid does to its liver: whole field of view against body, by Dice, as Markdown.

    python -m benchmarks.placement --shared ../shared/data --every 4 --pixel-mm 1.3 1.5

The first table compares labels of CTs that were padded with air to larger fields of view with those of the same CTs
without padding. The second compares labels with the truth. The shipped nets run in FP32 on each ``--every``-th slice,
without post-processing; the body is looked for in all slices.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

import trtseg
from training.readers.dicom import read_series
from trtseg import _core, models
from trtseg.body import place_body
from trtseg.engines import open_engine
from trtseg.engines.base import Engine
from trtseg.fit import Fit

#: Side of the padded field of view in mm, whether the CT lies in the middle of it or in a corner, and the air's HU.
PADDINGS = (
    (550, True, -1000), (600, True, -1024), (600, False, -1000), (700, True, -2000),
    (700, False, -3024), (780, True, -1000), (800, True, -1024), (800, False, -1000),
)  # fmt: skip


class Ct(NamedTuple):
    """A CT with its truth (0 without), ``[Z, Y, X]``, and the mm between rows and between columns."""

    name: str
    hu: np.ndarray
    truth: np.ndarray | None
    spacing: tuple[float, float]


class Nets(NamedTuple):
    """The two nets of a model."""

    liver: Engine
    tumour: Engine

    def label(self, hu: np.ndarray, fit: Fit, known: list[tuple[np.ndarray, ...]]) -> np.ndarray:
        """Labels of slices; an input that is in ``known`` already is not computed again."""
        hu_net, x = np.empty((len(hu), *fit.net), np.int16), np.empty((len(hu), 1, *fit.net), np.float32)
        liver, tumour = self.liver.spec, self.tumour.spec
        _core.prepare(np.ascontiguousarray(hu), fit, liver.window, hu_net, x)
        logits = next((old[1:] for old in known if np.array_equal(old[0], x)), None)
        if logits is None:
            l1, l2, pixels = np.empty_like(x), np.full_like(x, -1), np.empty(len(hu), np.int32)
            self.liver.run(x, l1)
            x2 = np.empty_like(x)
            _core.gate(l1, hu_net, liver.logit_threshold, tumour.window, x2, pixels)
            for i in np.flatnonzero(pixels):
                self.tumour.run(x2[i : i + 1], l2[i : i + 1])
            logits = l1, l2
            known.append((x, l1, l2))
        labels, counts = np.empty(hu.shape, np.uint8), np.empty((len(hu), 2), np.int32)
        _core.label(*logits, (liver.logit_threshold, tumour.logit_threshold), fit, labels, counts)
        return labels


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / both if both else 1.0


def place(ct: Ct, hu: np.ndarray, pixel_mm: float | None, net: tuple[int, int]) -> Fit:
    """The body at ``pixel_mm``, or the whole field of view."""
    if pixel_mm is None:
        return Fit.whole_field_of_view((hu.shape[1], hu.shape[2]), ct.spacing, net)
    return place_body(hu, ct.spacing, net, pixel_mm)


def pad(ct: Ct, side: float, centred: bool, air: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The CT in a square field of view of ``side`` mm, and where in it."""
    rows, columns = (max(n, round(side / s)) for n, s in zip(ct.hu.shape[1:], ct.spacing, strict=True))
    y, x = rows - ct.hu.shape[1], columns - ct.hu.shape[2]
    y, x = (y // 2, x // 2) if centred else (y, x)
    hu = np.full((len(ct.hu), rows, columns), air, np.int16)
    own = slice(y, y + ct.hu.shape[1]), slice(x, x + ct.hu.shape[2])
    hu[:, own[0], own[1]] = ct.hu
    return hu, own


def padded_row(ct: Ct, nets: Nets, every: int, pixel_mm: float | None) -> str:
    """Liver Dice of each padded CT with the CT itself."""
    net, known, found = nets.liver.spec.size, [], []
    alone = nets.label(ct.hu[::every], place(ct, ct.hu, pixel_mm, net), known) > 0
    for padding in PADDINGS:
        hu, own = pad(ct, *padding)
        labels = nets.label(hu[::every], place(ct, hu, pixel_mm, net), known)
        found.append(dice(labels[:, own[0], own[1]] > 0, alone))
    return f"| {ct.name} | {_rule(pixel_mm)} | " + " | ".join(f"{d:.4f}" for d in found) + " |"


def truth_row(ct: Ct, nets: Nets, every: int, pixel_mm: float | None) -> str:
    """Dice with the truth, and the size of the net's pixels."""
    assert ct.truth is not None
    fit = place(ct, ct.hu, pixel_mm, nets.liver.spec.size)
    labels, truth = nets.label(ct.hu[::every], fit, []), ct.truth[::every]
    tumour = f"{dice(labels == 2, truth == 2):.4f}" if (truth == 2).any() else "-"
    mm = fit.step[0] * ct.spacing[0]
    return f"| {ct.name} | {_rule(pixel_mm)} | {mm:.2f} | {dice(labels > 0, truth > 0):.4f} | {tumour} |"


def _rule(pixel_mm: float | None) -> str:
    return "field of view" if pixel_mm is None else f"body, {pixel_mm:g} mm"


def read_all(shared: Path) -> list[Ct]:
    """The CTs of the shared data that are complete, or have a liver for truth."""
    chaos, example = shared / "chaos3", shared / "totalseg_example"
    return [
        _nifti("chaos3", chaos / "volume.nii.gz", chaos / "segmentation.nii.gz"),
        _dicom("ircadb01", shared / "ircadb01/PATIENT_DICOM.tar.xz", shared / "ircadb01/labels.npz"),
        _dicom("crlm1006", shared / "crlm1006/image.tar.xz", None),
        _nifti("totalseg_example", example / "example_ct.nii.gz", example / "example_seg_liver.nii.gz"),
        _amos(shared / "amos0001/DICOM.tar.xz"),
    ]


def _nifti(name: str, image: Path, label: Path) -> Ct:
    volume = trtseg.load(image)
    truth = volume.geometry.canonical(np.asanyarray(nib.load(label).dataobj))
    return Ct(name, volume.array, np.asarray(truth > 0, np.uint8), volume.spacing[1:])


def _dicom(name: str, archive: Path, labels: Path | None) -> Ct:
    with tempfile.TemporaryDirectory() as folder:
        files = _unpack(archive, folder, "")
        files.sort(key=lambda p: int(p.stem.split("_")[-1]) if labels else p.name)  # image_0, image_1, ...
        series = read_series(files)
    truth = None
    if labels:
        stored = np.zeros(series.ct.geometry.shape, np.uint8)
        stored[series.index] = np.load(labels)["labels"]
        truth = np.ascontiguousarray(series.ct.geometry.canonical(stored))
    return Ct(name, series.ct.array, truth, series.ct.spacing[1:])


def _amos(archive: Path) -> Ct:
    import pydicom

    with tempfile.TemporaryDirectory() as folder:
        images, masks = _unpack(archive, folder, "img/"), _unpack(archive, folder, "msk/")
        series = read_series(images)
        stored = np.zeros(series.ct.geometry.shape, np.uint8)
        by_name = {mask.name: mask for mask in masks}  # there is a mask without an image
        for index, image in zip(series.index, images, strict=True):
            stored[index] = pydicom.dcmread(by_name[image.name]).pixel_array == 6
    truth = np.ascontiguousarray(series.ct.geometry.canonical(stored))
    return Ct("amos0001", series.ct.array, truth, series.ct.spacing[1:])


def _unpack(archive: Path, folder: str, part: str) -> list[Path]:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and part in path.as_posix())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--every", type=int, default=4, help="each so many-th slice is segmented (default: 4)"
    )
    parser.add_argument("--pixel-mm", type=float, nargs="+", default=[1.3, 1.5], help="for the body")
    args = parser.parse_args()
    files = models.find("default")
    nets = Nets(*(open_engine(files.read(net.role), net, precision="fp32") for net in files.spec.nets))
    cts, rules = read_all(args.shared), [None, *args.pixel_mm]
    titles = [f"{side} mm, {'centre' if centred else 'corner'}, {air} HU" for side, centred, air in PADDINGS]
    print("| CT | placed | " + " | ".join(titles) + " |\n" + "|---" * (len(titles) + 2) + "|")
    for ct in cts[:3]:
        for rule in rules:
            print(padded_row(ct, nets, args.every, rule), flush=True)
    print("\n| CT | placed | mm a net pixel | liver | tumour |\n|---|---|---|---|---|")
    for ct in cts:
        for rule in rules if ct.truth is not None else ():
            print(truth_row(ct, nets, args.every, rule), flush=True)


if __name__ == "__main__":
    main()
