"""All slices to train and validate on as one small file: for a machine with a GPU and no network.

    python -m training.kit --shared ../shared/data -o runs/kit.zip
    python -m training.kit --slices DIR --validation PATIENT -o runs/kit.zip

``--slices`` adds folders of ``.npz`` files, in the format that training/README.md describes.

Slices are placed on one grid, the body in the middle, at a fixed number of millimetres a pixel (`training.place`). HU
become levels: fine steps where soft tissue lies, coarse ones elsewhere. The same data gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import math
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from training.packing import pack_images, pack_labels, unpack_images, unpack_labels
from training.program import parser_of, plain_errors
from trtseg.errors import ArgumentError, InputError
from trtseg.fit import AIR_HU
from trtseg.io.atomic import atomic
from trtseg.io.folders import check_writable, made_folder

FORMAT, VERSION = "trtseg training kit", 1
#: HU of the lowest and the highest level, and between which HU levels are twice as dense.
LEVELS, FINE = (-160.0, 240.0), (-20.0, 180.0)
#: Rows and columns at least, millimetres a pixel, and HU between levels: with less there are more than a byte holds.
LEAST_SIZE, LEAST_MM, LEAST_STEP = 16, 0.05, 1.2
#: Of complete CTs that validate every third slice is kept.
COMPLETE, EVERY = ("chaos", "ircadb01", "totalseg_example"), 3
#: Slices whose lowest HU is above the first show air and fat alike; pixels up to the second above it are either.
CLIPPED_HU, FLOOR_HU = -130, 15
#: Pixels of slices that were stored modulo 256 and unwrapped are wrong where they differ so much from their neighbours.
WRAPPED_SETS, WRONG_HU = "ircadb", 150


@dataclass(frozen=True)
class Kit:
    """Slices to train and validate on. All arrays but ``level_hu`` and ``cells`` have a row a slice.

    Attributes
    ----------
    image : ndarray
        uint8 ``[N, S, S]``: levels, see ``level_hu``.
    label : ndarray
        uint8 ``[N, S, S]``: 0 background, 1 liver, 2 tumour, 255 unknown.
    level_hu : ndarray
        float32 ``[L]``: the HU of each level. The lowest and the highest are saturated.
    cells : ndarray
        float32 ``[M, 6]``, a row a cell: row of the slice, y0, y1, x0, x1 in its pixels, and a flag: 0 at most 2 % of
        the cell are tumour, 1 more than that are, 2 nobody knows.
    pixel_mm, thickness_mm : ndarray of float32
        Millimetres per pixel, and to the next slice; that is NaN where nobody knows.
    lowest_hu : ndarray of float32
        HU at which the source of the slice is saturated; air where it is not.
    tumour_known : ndarray of bool
        False where tumours have the label 1.
    case, group, source, split, body_part : ndarray of str
        Case, patient, data set; ``train`` or ``validation``; what a slice without liver shows, else "".
    z : ndarray of int
        Number of the slice in its source.
    sha256 : str
        Of the file.
    """

    image: np.ndarray
    label: np.ndarray
    level_hu: np.ndarray
    cells: np.ndarray
    pixel_mm: np.ndarray
    thickness_mm: np.ndarray
    lowest_hu: np.ndarray
    tumour_known: np.ndarray
    case: np.ndarray
    group: np.ndarray
    source: np.ndarray
    split: np.ndarray
    body_part: np.ndarray
    z: np.ndarray
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.image)

    @property
    def has_liver(self) -> np.ndarray:
        """Whether each slice shows liver, with or without tumour: bool ``[N]``."""
        return ((self.label == 1) | (self.label == 2)).any((1, 2))


def pixel_mm(kit: Kit, size: int) -> float:
    """Millimetres a pixel of a net that sees the slices of a kit on so many rows and columns."""
    return round(float(kit.pixel_mm.min()) * kit.image.shape[1] / size, 4)


def check_grid(size: int, mm: float, step: float) -> None:
    """Raise an `ArgumentError` where a kit cannot have such a grid or such levels; see `build`."""
    for name, got, least in (("size", size, LEAST_SIZE), ("mm", mm, LEAST_MM), ("step", step, LEAST_STEP)):
        if not (got >= least and math.isfinite(got)):
            raise ArgumentError(f"{name}: got {got}; expected a number of {least:g} or more")


def levels(step: float) -> np.ndarray:
    """HU of all levels, float32: ``step`` apart within `FINE`, twice that elsewhere."""
    hu = [LEVELS[0]]
    while hu[-1] < LEVELS[1]:
        hu.append(min(hu[-1] + (step if FINE[0] <= hu[-1] < FINE[1] else 2 * step), LEVELS[1]))
    return np.array(hu, np.float32)


def to_levels(hu: np.ndarray, level_hu: np.ndarray) -> np.ndarray:
    """The nearest level of each HU, uint8."""
    return np.searchsorted((level_hu[1:] + level_hu[:-1]) / 2, hu.clip(*LEVELS)).astype(np.uint8)


def build(cases: Sequence[Any], validation: Collection[str], size: int, mm: float, step: float) -> Kit:
    """Place the slices of all cases on the grid.

    Parameters
    ----------
    cases : sequence of training.cases.Case
    validation : collection of str
        Patients that validate, besides those that must not train.
    size, mm : int, float
        Rows and columns of the grid, and millimetres of its pixels.
    step : float
        HU between two levels of soft tissue.

    Raises
    ------
    ArgumentError
        If there is no such grid, or if there are no such levels.
    InputError
        If a case cannot be used, or a slice is one of a patient who trains and of one who validates.
    """
    from tqdm import tqdm

    from training.cases import read_checked
    from training.place import place, placed, placed_boxes, placed_labels
    from training.split import by_patient

    check_grid(size, mm, step)
    split = by_patient(cases, validation)
    level_hu = levels(step)
    seen: dict[bytes, Any] = {}  # cases by their slices with liver
    columns: dict[str, list[Any]] = {f.name: [] for f in fields(Kit) if f.name not in ("level_hu", "sha256")}
    for case in tqdm(cases, "placing", leave=False, disable=None):
        try:
            scan = read_checked(case)
        except InputError as error:
            raise InputError(f"{case.source}/{case.name}: {error}") from error
        repair = case.source.startswith(WRAPPED_SETS) and split[case.group] == "train"
        for i in range(0, len(scan.z), EVERY if case.source in COMPLETE else 1):
            hu = without_wrapped(scan.hu[i], scan.label[i]) if repair else scan.hu[i]
            lowest = int(hu.min())
            if lowest > CLIPPED_HU:
                hu = with_air(hu)
            where = place(hu, scan.spacing[2], size, mm)
            if scan.cells is not None:
                own = scan.cells[scan.cells[:, 0] == i]
                boxes = placed_boxes(own[:, 1:5], where, size)
                row = np.full((len(own), 1), len(columns["image"]), np.float32)
                columns["cells"].append(np.hstack([row, boxes, own[:, 5:]]))
            image = to_levels(placed(hu, where, size), level_hu)
            if np.isin(scan.label[i], (1, 2)).any():
                other = seen.setdefault(hashlib.sha256(image.tobytes()).digest(), case)
                if split[other.group] != split[case.group]:
                    raise InputError(
                        f"{case.source}/{case.name}: slice {int(scan.z[i])} is one of {other.source}/{other.name} too, "
                        f"so {case.group} and {other.group} are one patient, who would train and validate; give both "
                        "the same name"
                    )
            columns["image"].append(image)
            columns["label"].append(placed_labels(scan.label[i], where, size))
            columns["pixel_mm"].append(where.mm)
            columns["thickness_mm"].append(scan.spacing[0] * (EVERY if case.source in COMPLETE else 1))
            columns["lowest_hu"].append(lowest)
            columns["tumour_known"].append(case.labels_tumour)
            columns["case"].append(case.name)
            columns["group"].append(case.group)
            columns["source"].append(case.source)
            columns["split"].append(split[case.group])
            columns["body_part"].append(case.body_part)
            columns["z"].append(int(scan.z[i]))
    return _of_columns(columns, level_hu)


def _of_columns(columns: dict[str, Any], level_hu: np.ndarray, sha256: str = "") -> Kit:
    cells = [np.zeros((0, 6)), *columns.pop("cells")]
    floats = {k: np.array(columns.pop(k), np.float32) for k in ("pixel_mm", "thickness_mm", "lowest_hu")}
    images = {k: np.asarray(columns.pop(k)) for k in ("image", "label")}
    rest = {k: np.array(v) for k, v in columns.items()}
    return Kit(
        **images, **floats, **rest, level_hu=level_hu, cells=np.vstack(cells).astype(np.float32), sha256=sha256
    )  # fmt: skip


def with_air(hu: np.ndarray) -> np.ndarray:
    """HU ``[Y, X]`` with air where a slice that is clipped shows its lowest HU all the way to its border."""
    from scipy.ndimage import label

    parts, _ = label(hu <= int(hu.min()) + FLOOR_HU)
    border = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return np.where(np.isin(parts, border[border > 0]), AIR_HU, hu)


def without_wrapped(hu: np.ndarray, label: np.ndarray) -> np.ndarray:
    """HU ``[Y, X]`` with single wrong pixels outside the liver replaced by the median of their neighbours."""
    from scipy.ndimage import median_filter

    median = median_filter(hu, 3)
    wrong = (np.abs(hu.astype(np.int32) - median) > WRONG_HU) & (label == 0)
    return np.where(wrong, median, hu)


def write(path: Path, kit: Kit) -> str:
    """Write a kit as one file, and return its SHA-256."""
    about = {"format": FORMAT, "version": VERSION, "size": kit.image.shape[1], "slices": len(kit)}
    columns = {
        field.name: _listed(getattr(kit, field.name))
        for field in fields(Kit)
        if field.name not in ("image", "label", "sha256")
    }
    files = {"kit.json": json.dumps({**about, **columns}, separators=(",", ":"), allow_nan=False).encode()}
    for name, blocks in (("image", pack_images(kit.image)), ("label", pack_labels(kit.label))):
        files |= {f"{name}/{i:03d}.xz": block for i, block in enumerate(blocks)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980, so that the same data gives the same bytes
            entry.compress_type = zipfile.ZIP_DEFLATED if name == "kit.json" else zipfile.ZIP_STORED
            archive.writestr(entry, data)
    with atomic(path) as (temporary,):
        temporary.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _listed(values: np.ndarray) -> list[Any]:
    """An array as JSON has it, with null for NaN."""
    if values.dtype.kind != "f":
        return values.tolist()
    rounded = values.astype(np.float64).round(3)
    return np.where(np.isnan(rounded), None, rounded.astype(object)).tolist()


def read(path: Path) -> Kit:
    """Read a kit; an `InputError` says what is wrong with the file."""
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            about = json.loads(archive.read("kit.json"))
            blocks = {
                name: [archive.read(entry) for entry in sorted(archive.namelist()) if entry.startswith(name)]
                for name in ("image/", "label/")
            }
        if (about.pop("format", None), about.pop("version", None)) != (FORMAT, VERSION):
            raise InputError(f"{path}: is no {FORMAT} of version {VERSION}; make it again with training.kit")
        size, count = about.pop("size"), about.pop("slices")
        about["image"] = unpack_images(blocks["image/"], size)
        about["label"] = unpack_labels(blocks["label/"], size)
    except (OSError, KeyError, ValueError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a file of training.kit") from error
    if len(about["image"]) != count or len(about["label"]) != count:
        raise InputError(
            f"{path}: holds {len(about['image'])} slices, not {count}; make it again with training.kit"
        )
    level_hu = np.array(about.pop("level_hu"), np.float32)
    about["cells"] = [np.array(about["cells"], np.float32).reshape(-1, 6)]
    return _of_columns(about, level_hu, hashlib.sha256(data).hexdigest())


def show(kit: Kit) -> None:
    """Print what a kit holds."""
    for split in ("train", "validation"):
        own = kit.split == split
        patients = len(set(kit.group[own].tolist()))
        print(f"{split}: {own.sum()} slices of {patients} patients")
        for source, n in sorted(Counter(kit.source[own].tolist()).items()):
            print(f"  {source}: {n}")


def listed(
    shared: Path | None, folders: Sequence[Path], validation: Sequence[str]
) -> tuple[list[Any], list[str]]:
    """The cases of the shared data and of folders of slices with cells, and the patients that validate."""
    from training.readers.liver_slices import liver_slices, patient_group
    from training.readers.shared import VALIDATION, shared_cases
    from training.split import by_patient, check_patients

    cases = shared_cases(shared) if shared else []
    for folder in folders:
        # Some shared sets are treated in ways of their own, by how their names begin: not so.
        name = f"slices/{folder.resolve().name}"
        cases += [replace(case, source=f"{name}/{case.source}") for case in liver_slices(folder)]
    validation = [patient_group(name) for name in validation]
    check_patients("validation", validation, {case.group for case in cases})
    held = [*(VALIDATION if shared else ()), *validation]
    if missing := {"train", "validation"} - set(by_patient(cases, held).values()):
        raise InputError(
            f"validation: no patient to {' or '.join(sorted(missing)).replace('validation', 'validate')}; "
            "name some of the patients with --validation, not all"
        )
    return cases, held


@plain_errors()
def main() -> None:
    """Parse the command line and write the kit."""
    parser = parser_of(__doc__)
    parser.add_argument("--shared", type=Path, metavar="DIR", help="folder of the shared data")
    parser.add_argument(
        "--slices", type=Path, nargs="+", default=[], metavar="DIR", help="folders of slices with cells, .npz"
    )
    parser.add_argument(
        "--validation",
        nargs="+",
        default=[],
        metavar="PATIENT",
        help="patients that validate, besides those of --shared",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="KIT", help="file to write")
    parser.add_argument("--size", type=int, default=256, help="rows and columns (256)")
    parser.add_argument("--mm", type=float, default=1.5, help="millimetres a pixel (1.5)")
    parser.add_argument("--step", type=float, default=6.0, help="HU between levels of soft tissue (6)")
    args = parser.parse_args()
    if not args.shared and not args.slices:
        parser.error("no data; give --shared, --slices or both")
    check_grid(args.size, args.mm, args.step)
    with made_folder(args.output.parent, "--output"):
        check_writable(args.output.parent, "--output")
        kit = build(*listed(args.shared, args.slices, args.validation), args.size, args.mm, args.step)
        sha256 = write(args.output, kit)
    show(kit)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256}")


if __name__ == "__main__":
    main()
