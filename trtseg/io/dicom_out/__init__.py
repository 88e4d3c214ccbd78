"""Results -> DICOM objects that belong to the study of their source: SEG, SR and secondary captures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trtseg.errors import ArgumentError, OutputError
from trtseg.io.dicom_out import codes
from trtseg.io.dicom_out.capture import encode_captures
from trtseg.io.dicom_out.measurements import make_report
from trtseg.io.dicom_out.seg import read_segments, write_seg
from trtseg.io.dicom_out.source import Source, dicom_source, quiet
from trtseg.io.names import ANALYZE, IMAGES, is_folder
from trtseg.labels.components import Array
from trtseg.labels.lesions import Lesion
from trtseg.volume import Geometry
from trtseg.warnings import ResultWarning

#: What can be written: a Segmentation, the same as a label map, a Measurement Report on it, pictures.
KINDS = ("seg", "labelmap", "sr", "sc")
_PICTURE = "sc_{:04}.dcm"


class Result(Protocol):
    """What `trtseg.result.Segmentation` has, and what objects are made of."""

    @property
    def geometry(self) -> Geometry:
        """The grid of the source."""

    @property
    def canonical(self) -> Array:
        """Labels, uint8 ``[Z, Y, X]``."""

    @property
    def liver_ml(self) -> float:
        """Volume of the liver with its tumours."""

    @property
    def tumour_ml(self) -> float:
        """Volume of the tumours."""

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """Largest first."""

    @property
    def provenance(self) -> dict[str, Any]:
        """How the labels were made."""

    @property
    def warnings(self) -> tuple[ResultWarning, ...]:
        """What the volumes may be wrong by."""


def check_kinds(kinds: Iterable[str], name: str = "kinds") -> tuple[str, ...]:
    """Put kinds of objects into the order of `KINDS`.

    Raises
    ------
    ArgumentError
        If there is none, one is unknown, or a report is asked for without the segmentation that it refers to.
    """
    is_one = isinstance(kinds, str) or not isinstance(kinds, Iterable)
    wanted = (kinds,) if is_one else tuple(kinds)
    found = tuple(kind for kind in KINDS if kind in wanted)
    if not wanted or set(wanted) - set(KINDS):
        raise ArgumentError(
            f"{name}: got {', '.join(map(str, wanted)) or 'none'}; expected some of {', '.join(KINDS)}"
        )
    if "sr" in found and "seg" not in found:
        raise ArgumentError(f"{name}: got sr without seg; expected both, since a report refers to segments")
    return found


def file_names(kinds: Iterable[str], pictures: int = 1) -> list[tuple[str, str]]:
    """Name the files of kinds in the order of `KINDS`: each with its kind, ``sc`` once for each picture."""
    names: list[tuple[str, str]] = []
    for kind in kinds:
        numbered = [_PICTURE.format(n) for n in range(1, pictures + 1)]
        names += [(kind, name) for name in (numbered if kind == "sc" else [f"{kind}.dcm"])]
    return names


def left_over(folder: Path, written: Iterable[str]) -> list[Path]:
    """Find what an earlier result left in a folder, and what the files ``written`` make wrong.

    That is a report of trtseg on the Segmentation that is replaced, and pictures after the last one of the new series.
    """
    names, report = set(written), folder / "sr.dcm"
    found = [report] if "seg.dcm" in names and "sr.dcm" not in names and _is_own(report) else []
    if pictures := sum(name.startswith("sc_") for name in names):
        later = (folder / _PICTURE.format(n) for n in itertools.count(pictures + 1))
        found += itertools.takewhile(Path.exists, later)
    return found


def _is_own(path: Path) -> bool:
    """Whether trtseg made a DICOM object; False where that cannot be known."""
    import pydicom

    try:
        return bool(pydicom.dcmread(path, specific_tags=["Manufacturer"]).Manufacturer == codes.NAME)
    except Exception:  # whatever is wrong with it, it is no object of trtseg
        return False


def check_inputs(paths: Iterable[Path], name: str) -> None:
    """Raise an ArgumentError if a file's name says that it is no DICOM file; ``name`` asked for DICOM output."""
    for path in paths:
        if not is_folder(path) and path.name.lower().endswith((*IMAGES, *ANALYZE)):
            raise ArgumentError(
                f"{name}: DICOM output was asked for, and {path} is no DICOM series, whose images an object refers "
                "to; give the DICOM files, or write .nii.gz, .nrrd or .mha"
            )


def check_result(result: Result) -> Source:
    """Find the series that a result came from; OutputError if no DICOM objects can be made of the result."""
    source = dicom_source(result.geometry)
    if result.liver_ml == 0:
        raise OutputError(
            "DICOM output: no liver was found, and a DICOM segmentation cannot be empty; save .nii.gz or the report"
        )
    return source


def write_dicom(
    files: Sequence[tuple[str, Path]],
    result: Result,
    pictures: Iterable[tuple[int, Array]] = (),
    seg: Path | None = None,
) -> None:
    """Write objects of one result, which refer to each other.

    The files are written in place: call this with temporary paths of `trtseg.io.atomic`.

    Parameters
    ----------
    files : sequence of (str, Path)
        Kinds as `check_kinds` orders them, each with its file; ``sc`` once for each picture.
    result : Result
        The result.
    pictures : iterable of (int, ndarray)
        For ``sc``: axial slices ``z`` of the canonical grid, and their pictures, uint8 ``[Y, X, 3]``.
    seg : Path, optional
        For ``sr`` without ``seg``: the Segmentation of this result, which was written before.

    Raises
    ------
    OutputError
        If the source is no DICOM series, or no object can be made for it.
    """
    source = check_result(result)
    with _headers_allow_it():
        for kind, path in files:
            if kind == "labelmap":
                write_seg(path, source, result, labelmap=True)
            elif kind == "seg":
                write_seg(path, source, result)
                seg = path
            elif kind == "sr":
                assert seg is not None
                make_report(source, result, *read_segments(seg, result)).save_as(path)
        captures = [path for kind, path in files if kind == "sc"]
        for path, (_, parts) in zip(captures, encode_captures(source, result, pictures), strict=True):
            with path.open("wb") as file:
                file.writelines(parts)


def encode_pictures(
    result: Result, pictures: Iterable[tuple[int, Array]], series_uid: str, first: int
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Encode the pictures of a result one by one, see `trtseg.io.dicom_out.capture.encode_captures`.

    Raises
    ------
    OutputError
        As `write_dicom`.
    """
    source = check_result(result)
    made = encode_captures(source, result, pictures, series_uid, first)
    while True:
        with _headers_allow_it():  # not while the caller has the picture
            encoded = next(made, None)
        if encoded is None:
            return
        yield encoded


@contextmanager
def _headers_allow_it() -> Iterator[None]:
    """Make an OutputError of what pydicom and highdicom do not allow."""
    try:
        with quiet():
            yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        # Their sentences quote values, which may tell who the patient is.
        raise OutputError(
            f"DICOM output: the headers of the source do not allow it ({type(error).__name__}); export the series "
            "again, or save .nii.gz"
        ) from error
