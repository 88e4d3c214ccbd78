"""The bytes of a DICOM file -> a pydicom Dataset, without trust in what they say."""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from typing import Any

from trtseg.errors import InputError, TrtsegError
from trtseg.io.dicom.header import text
from trtseg.resources import check_memory, is_lack_of_memory

#: Bytes of a file that are looked at, packed or not.
MAX_BYTES = 4 << 30
_PREAMBLE, _MAGIC = 128, b"DICM"
#: Bytes that are had without a question: how much memory is free takes longer to ask than a slice to decode.
LARGE = 1 << 27
SNIFFED = _PREAMBLE + len(_MAGIC)
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MEDIA_CLASS = b"\2\0\2\0UI"  # MediaStorageSOPClassUID, as it always stands there
_META, _CHUNK = 1 << 12, 1 << 20


def looks_like_dicom(start: bytes) -> bool:
    """Tell from the first `SNIFFED` bytes of a file whether it may be DICOM; some files have no preamble."""
    if start[_PREAMBLE:SNIFFED] == _MAGIC:
        return True
    # A first element of group 2 or 8, of a group length or with a length below 256, in either order of bytes.
    return len(start) > 8 and (
        (start[:2] in (b"\2\0", b"\x08\0") and start[3] == 0 and _is_short(start[4:8]))
        or (start[:2] in (b"\0\2", b"\0\x08") and start[2] == 0 and start[4:6].isupper())
    )


def _is_short(start: bytes) -> bool:
    return (start[:2].isalpha() and start[:2].isupper()) or start[1:] == b"\0\0\0"


def parse(name: str, data: bytes, *, pixels: bool) -> Any:
    """Parse a DICOM file that may have no preamble, no meta header, or be damaged.

    Parameters
    ----------
    name : str
        The file, for messages.
    data : bytes
        The whole file: a length in it can then claim no more than there is.
    pixels : bool
        Whether to go on to the pixels.

    Returns
    -------
    pydicom.Dataset

    Raises
    ------
    InputError
        If pydicom is not installed, or this is no DICOM file.
    OutOfMemoryError
        If it is deflated, and unpacks to more than there is memory for.
    """
    check_installed()
    import pydicom

    try:
        _check_inflated(name, data)
        dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=not pixels)
        dataset.buffer = None  # the whole file, pixels included, which pydicom keeps
        is_dicom = any(keyword in dataset for keyword in ("SOPClassUID", "Modality", "Rows", "PixelData"))
    except TrtsegError:
        raise
    except Exception as error:  # damaged files make pydicom raise errors of many types
        if is_lack_of_memory(error):
            raise
        raise InputError(
            f"{name}: cannot be read as DICOM ({type(error).__name__}); the file is damaged, fetch it again"
        ) from error
    if not is_dicom:
        raise InputError(f"{name}: is no DICOM file, or a damaged one; give the DICOM files of one CT series")
    return dataset


def sop_class(path: str | os.PathLike[str]) -> str:
    """SOP Class UID of a file; where its start does not say that, it is parsed, see `parse`."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 - reading all says what is wrong
        start = file.read(_META)
        _, found, rest = start[SNIFFED:].partition(_MEDIA_CLASS)
        if found and start[_PREAMBLE:SNIFFED] == _MAGIC:
            return rest[2 : 2 + int.from_bytes(rest[:2], "little")].rstrip(b"\0 ").decode("ascii", "replace")
    return text(parse(os.fspath(path), read_bytes(path), pixels=False), "SOPClassUID")


def _check_inflated(name: str, data: bytes) -> None:
    """Refuse a deflated file that unpacks to more than `MAX_BYTES`; pydicom unpacks it without a limit."""
    from pydicom.filereader import read_dataset

    if _DEFLATED.encode() not in data[:_META]:
        return
    stream: Any = io.BytesIO(data)
    stream.seek(SNIFFED if data[_PREAMBLE:SNIFFED] == _MAGIC else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if text(meta, "TransferSyntaxUID") != _DEFLATED:
        return
    inflate, packed, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), data[stream.tell() :], 0
    while packed and not inflate.eof:
        unpacked += len(inflate.decompress(packed, _CHUNK))
        packed = inflate.unconsumed_tail
        if unpacked > MAX_BYTES:
            raise InputError(f"{name}: unpacks to more than {MAX_BYTES >> 30} GiB; that is no CT")
    check_unpacked(name, 2 * unpacked)  # pydicom's buffer grows as it goes


def check_unpacked(name: str, needed: int) -> None:
    """Raise an OutOfMemoryError if a small file unpacks to more than there is memory for."""
    if needed > LARGE:
        check_memory(name, needed)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file of at most `MAX_BYTES`; an InputError says why it cannot be read."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise InputError(f"{name}: has more than {MAX_BYTES >> 30} GiB; that is no CT series")
            return file.read()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); check the path") from error


def check_installed() -> None:
    """Raise an InputError unless the package that reads DICOM is installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"reading DICOM needs pydicom ({error}); pip install 'trtseg[dicom]'") from error
