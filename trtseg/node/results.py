"""Results -> DICOM objects in the spool: the Segmentation, the report on it, then the pictures, a few at a time."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import uuid
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtseg.errors import InputError, OutputError
from trtseg.io import atomic
from trtseg.node.files import flush_folder, is_lost, is_unreadable
from trtseg.node.spool import Made, Spool

if TYPE_CHECKING:
    from trtseg.result import Segmentation

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: SOP classes of results: Segmentation, Comprehensive SR and secondary capture.
RESULT_CLASSES = frozenset(
    ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33", SECONDARY_CAPTURE)
)
_TOGETHER = 8  # pictures that are noted at once: the first are sent while the next are drawn
_FIRST = 2  # times so many come before the report: an archive takes longer to store them than the report to be written
_WRITERS = 4  # pictures that are flushed to the disk side by side, which takes hardly longer than one


def write_results(
    spool: Spool,
    result: Segmentation,
    kinds: Sequence[str],
    have: Mapping[str, Sequence[str]],
    series_uid: str,
) -> Generator[list[Made]]:
    """Write the DICOM objects of a result into the spool, where nobody knows of them yet, in parts.

    Each part is to be noted before the next one is asked for: it is sent meanwhile, and after a restart those that are
    missing follow. The first pictures come before the report, so that an archive always has something to store.

    Parameters
    ----------
    kinds : sequence of str
        Of ``seg``, ``sr``, ``sc``.
    have : mapping of str to sequence of str
        Files of the objects that there are already, by kind.
    series_uid : str
        Of the series of the pictures.

    Yields
    ------
    list of Made
        Some objects, on the disk. There are none where not a single voxel is liver: no Segmentation is empty.

    Raises
    ------
    InputError
        The headers of the source do not allow for such objects.
    OSError
        The disk cannot be written.
    """
    if result.liver_ml == 0:
        return
    seg = next(iter(have.get("seg", ())), "")
    try:
        if "seg" in kinds and not seg:
            yield [made := _write_object(spool, result, "seg")]
            seg = made.file
        drawn = len(have.get("sc", ()))
        with contextlib.closing(_write_pictures(spool, result, series_uid, drawn)) as pictures:
            wanted = pictures if "sc" in kinds else ()
            yield from itertools.islice(wanted, _FIRST)
            if "sr" in kinds and "sr" not in have:
                yield [_write_object(spool, result, "sr", spool.path("results", seg))]
            yield from wanted
    except OutputError as error:  # a broken disk, or a source that no objects can be made for
        raise error.__cause__ if isinstance(error.__cause__, OSError) else InputError(str(error)) from error


def _write_object(spool: Spool, result: Segmentation, kind: str, seg: Path | None = None) -> Made:
    """Write the Segmentation, or the report on it."""
    import pydicom

    from trtseg.io.dicom_out import write_dicom

    with tempfile.TemporaryDirectory(prefix=".", dir=spool.folder / "results") as folder:
        path = Path(folder, f"{kind}.dcm")
        with atomic(path) as (temporary,):
            write_dicom([(kind, temporary)], result, seg=seg)
        tags = ["SOPClassUID", "SOPInstanceUID"]
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        file = spool.adopt("results", path)
    return Made(kind, header.SOPClassUID, header.SOPInstanceUID, file)


def _write_pictures(spool: Spool, result: Segmentation, series_uid: str, first: int) -> Generator[list[Made]]:
    """Draw and write the pictures of a result from the first on, counted from 0."""
    from trtseg.io.dicom_out import encode_pictures
    from trtseg.report.captures import draw_captures, drawn_slices

    assert result.volume is not None
    slices = drawn_slices(result.canonical, result.geometry.spacing[0], result.lesions)[first:]
    pictures = draw_captures(result.volume, result.canonical, slices)
    writing: list[tuple[str, Any]] = []

    def written() -> list[Made]:
        made = [Made("sc", SECONDARY_CAPTURE, uid, file.result()) for uid, file in writing]
        flush_folder(spool.folder / "results")
        writing.clear()
        return made

    with ThreadPoolExecutor(_WRITERS) as pool:  # pictures go to the disk while the next ones are drawn
        try:
            for uid, parts in encode_pictures(result, pictures, series_uid, first + 1):
                if len(writing) == _TOGETHER:
                    yield written()
                writing.append((uid, pool.submit(spool.write, "results", *parts, flush_name=False)))
            if writing:
                yield written()
        finally:  # what was not noted is removed
            left = [file for _, file in writing if not file.exception()]
            spool.remove("results", [file.result() for file in left])


def series_of_pictures(spool: Spool, series: int, last: int) -> str:
    """UID of the series of the pictures of this revision, up to the instance ``last``: the same after a restart."""
    (file,) = spool.row("SELECT file FROM instance WHERE id=?", last)
    (revision,) = spool.row("SELECT revision FROM series WHERE id=?", series)
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{file} {revision}').int}"


def begun(spool: Spool, series: int, fingerprint: str) -> dict[str, list[str]] | None:
    """Tell which results a series in state ``part`` has: their files by kind. None: all are to be made.

    Parameters
    ----------
    fingerprint : str
        Of the Segmenter. Results that another model or version has begun are not continued, nor are those of which a
        file is lost.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    if spool.row("SELECT 1 FROM series WHERE id=? AND state='part'", series) is None:
        return None
    made = spool.rows(
        "SELECT kind, file, bytes FROM result WHERE series=? AND revision=(SELECT revision FROM series WHERE id=?)",
        *(series, series),
    )
    if any(is_lost(spool.path("results", row["file"]), row["bytes"]) for row in made):
        return None
    for row in made[:1]:
        path = spool.path("results", row["file"])
        try:
            header = pydicom.dcmread(path, specific_tags=["DeviceSerialNumber"], stop_before_pixels=True)
        except InvalidDicomError:  # a disk that did not keep what it had flushed
            return None
        except OSError as error:
            if not is_unreadable(error):
                raise
            return None
        if header.get("DeviceSerialNumber") != fingerprint:
            return None
    files: dict[str, list[str]] = {}
    for row in made:
        files.setdefault(row["kind"], []).append(row["file"])
    return files
