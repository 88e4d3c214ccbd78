"""The DICOM files of a folder, of a zip, or beside a file; nothing of a zip is ever written anywhere."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from trtseg.errors import InputError, OutOfMemoryError
from trtseg.io.dicom.dataset import MAX_BYTES, SNIFFED, check_unpacked, looks_like_dicom, parse, read_bytes
from trtseg.io.dicom.header import text
from trtseg.io.dicom.series import why_no_picture
from trtseg.io.names import ARCHIVES, DICOM, IMAGES, ZIP, is_folder
from trtseg.resources import is_lack_of_memory

_NO_DICOM = (*IMAGES, ".hdr", ".gz", ".json", ".png", ".jpg", ".txt", ".csv", ".xml", ".pdf", ".zip")
_MAX_FILES = 100_000
_MAX_UNPACKED = 32 << 30  # bytes of all files of a zip
_CHUNK = 1 << 20


class DicomFile(NamedTuple):
    """A file that looks like DICOM, and the call that reads it whole."""

    path: Path
    read: Callable[[], bytes]


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a DICOM file or a zip, by its name or its first bytes; no pipe is opened."""
    if os.fspath(path).lower().endswith(ZIP):
        return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises where it may not look
    return is_dicom_file(Path(path))


def is_dicom_file(path: Path) -> bool:
    """Tell whether a path is a DICOM file, in the same way."""
    if not os.path.isfile(path) or path.name.lower().endswith(_NO_DICOM):  # noqa: PTH113
        return False
    if path.name.lower().endswith(DICOM):
        return True  # reading it says what is wrong if it is none
    try:
        with path.open("rb") as file:
            return looks_like_dicom(file.read(SNIFFED))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its mode") from error


def find_files(path: str | os.PathLike[str]) -> list[DicomFile]:
    """List the DICOM files of a folder and the folders below it, of a zip, or of the folder that a file lies in.

    Hidden files, a DICOMDIR, and what is no DICOM are left out.

    Raises
    ------
    InputError
        If a folder cannot be listed, or a zip cannot be read or is too large.
    """
    own = Path(path)
    if own.name.lower().endswith(ZIP) and not is_folder(own):
        return _in_zip(own)
    if not os.path.lexists(own):
        raise InputError(f"{own}: no such file; check the path")
    if is_folder(own):
        found = list(files_below(own))
    else:
        found = listed(own.parent)
        found += [own] * (own not in found)  # a hidden one
    return [DicomFile(one, partial(read_bytes, one)) for one in found if one == own or _is_found(one)]


def archives(path: str | os.PathLike[str]) -> list[Path]:
    """List archives that lie in a folder, where nobody looks into them; zips first."""
    found = listed(Path(path)) if is_folder(path) else []
    packed = [one for one in found if one.name.lower().endswith(ARCHIVES)]
    return sorted(packed, key=lambda one: not one.name.lower().endswith(ZIP))


def study_of(paths: Iterable[Path]) -> str | None:
    """Study Instance UID of the first CT among files, ``""`` if that has none or is damaged; None: no CT is there."""
    for path in paths:
        if _is_found(path):
            try:
                header = parse(os.fspath(path), read_bytes(path), pixels=False)
            except (InputError, OutOfMemoryError):
                return ""  # reading the series says what is wrong
            if not why_no_picture(header):
                return text(header, "StudyInstanceUID")
    return None


def one_of_each_series(paths: Iterable[Path]) -> list[Path]:
    """Leave out DICOM files that lie beside an earlier one of their series: a file stands for its whole series."""
    seen: set[tuple[Path, str]] = set()
    kept = []
    for path in paths:
        key = (path, "")
        if is_dicom_file(path):
            with suppress(InputError, OutOfMemoryError):  # reading it says what is wrong
                header = parse(os.fspath(path), read_bytes(path), pixels=False)
                key = (path.parent, text(header, "SeriesInstanceUID"))
        if key not in seen:
            seen.add(key)
            kept.append(path)
    return kept


def files_below(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """The files of a folder and of those below it that are not hidden, but for folders whose real paths were seen."""
    seen = set() if seen is None else seen
    folders = [folder]
    while folders:
        one = folders.pop()
        if (real := os.path.realpath(one)) in seen:
            continue  # a link that leads back
        seen.add(real)
        paths = listed(one)
        yield from (path for path in paths if not is_folder(path))
        folders += [path for path in reversed(paths) if is_folder(path)]


def listed(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, by name; an InputError if nobody may look."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check the path") from error


def _may_be(name: str) -> bool:
    return not name.startswith(".") and name.upper() != "DICOMDIR" and not name.lower().endswith(_NO_DICOM)


def _may_be_in_zip(name: str) -> bool:
    """The same of a name with the folders that it is in, of which none may be hidden."""
    folders = Path(name).parts[:-1]
    return _may_be(Path(name).name) and not any(one.startswith(".") for one in folders if one != "..")


def _is_found(path: Path) -> bool:
    """Whether a file that nobody has named is taken for DICOM."""
    return _may_be(path.name) and is_dicom_file(path)


def _in_zip(path: Path) -> list[DicomFile]:
    with _zip_errors(path):
        archive = zipfile.ZipFile(path)  # closed when the last of its files is forgotten
        members = [one for one in archive.infolist() if not one.is_dir() and _may_be_in_zip(one.filename)]
        size = sum(one.file_size for one in members)
        if len(members) > _MAX_FILES or size > _MAX_UNPACKED:
            raise InputError(
                f"{path}: holds {len(members)} files of {size / 1e9:.0f} GB; expected at most {_MAX_FILES} files and "
                f"{_MAX_UNPACKED >> 30} GiB, unpack it"
            )
        if any(one.file_size > MAX_BYTES for one in members):
            raise InputError(f"{path}: holds a file of more than {MAX_BYTES >> 30} GiB; that is no CT series")
        members = [
            one
            for one in members
            if one.filename.lower().endswith(DICOM) or _is_dicom_in_zip(path, archive, one)
        ]
        members.sort(key=lambda one: one.filename)
    return [
        DicomFile(path / one.filename.lstrip("/"), partial(_unpack, path, archive, one)) for one in members
    ]


def _unpack(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Read a file of a zip into memory."""
    check_unpacked(os.fspath(path / member.filename), member.file_size)
    with _zip_errors(path), archive.open(member) as file:
        return file.read(member.file_size)


def _is_dicom_in_zip(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Look at the start of a file of a zip; where it is not that of DICOM, compare the checksum of the whole file."""
    with _zip_errors(path), archive.open(member) as file:
        if looks_like_dicom(file.read(SNIFFED)):
            return True
        while file.read(_CHUNK):
            pass
    return False


@contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    """Make an InputError of what a damaged or locked zip raises."""
    try:
        yield
    except (
        OSError,
        zipfile.BadZipFile,
        RuntimeError,
        NotImplementedError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
    ) as error:
        if is_lack_of_memory(error):
            raise
        why = "it has a password" if "password" in str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as a zip ({why}); unpack it, or fetch it again") from error
