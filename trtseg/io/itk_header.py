"""Headers of NRRD and MetaImage files, before ITK reads them: where the voxels are, and what would harm it."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from trtseg.errors import InputError

# Where a header names the file with its data, or a list or a pattern of several; the last line of a MetaImage header.
_META_DATA = re.compile(rb"^ElementDataFile\s*=[ \t]*([^\r\n]+?)[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_NRRD_DATA = re.compile(
    rb"(?:\A|(?<=[\r\n]))data ?file:(?!=)[ \t]*([^\r\n]+?)[ \t]*(?:\r?\n|\Z)", re.IGNORECASE
)
_LOCAL = (b"LOCAL", b"Local", b"local")
_META_LIST = re.compile(rb"LIST(?:[ \t]+([1-9])D?)?")  # dimensions of each file
_META_RANGE = re.compile(rb"\S+(?: \d{1,9}(?: \d{1,9} \d{1,9})?)?")  # first, last, step
_NUMBER = re.compile(rb"%\d*(?:\.\d*)?[diu]")  # of a slice, in the pattern of its file
_SHORT_NUMBER = re.compile(rb"[^%]*%\d{0,2}(?:\.\d{0,2})?[diu][^%]*")
_HEADER = 1 << 20  # bytes; Slicer names each segment of a label map in it
_META_DIMENSIONS = re.compile(rb"NDims[\s=:]*([^\s=:]*)")
_META_COMPRESSED = re.compile(rb"^CompressedData\s*=\s*[Tt1]", re.MULTILINE)
_META_SIZE = re.compile(rb"^CompressedDataSize\s*=\s*(\d+)", re.MULTILINE)
_NRRD_END = re.compile(rb"\r?\n\r?\n")
_NRRD_COMPRESSED = re.compile(rb"^encoding:\s*gz", re.IGNORECASE | re.MULTILINE)
_NRRD_SKIPS = re.compile(rb"^(?:line|byte) ?skip:", re.IGNORECASE | re.MULTILINE)
_NRRD_UNITS = re.compile(rb"^space units:\s*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_MM = {b"", b"mm", b"millimeter", b"millimeters", b"millimetre", b"millimetres"}
# What values are multiplied by and what is added, and what changes nothing.
_META_SCALES = {b"ElementToIntensityFunctionSlope": 1, b"ElementToIntensityFunctionOffset": 0}
_CHUNK = 1 << 16  # compressed bytes at a time, of which no more than 64 MiB can come
_ZLIB_OR_GZIP = 47  # the code that asks zlib to tell which of the two it is


def read_header(path: Path) -> bytes:
    """Read the header of a NRRD or MetaImage file, up to the voxels if they follow in the same file."""
    with path.open("rb") as file:
        start = file.read(_HEADER)
    end = (_NRRD_END if start.startswith(b"NRRD") else _META_DATA).search(start)
    return start if end is None else start[: end.end()]


def _named(head: bytes) -> re.Match[bytes] | None:
    """What a header names as its data; None if that follows in the same file."""
    if head.startswith(b"NRRD"):
        return _NRRD_DATA.search(head)
    found = _META_DATA.search(head)
    return None if found is None or found[1] in _LOCAL else found


def data_files(path: Path) -> list[Path]:
    """List the files that a header names for its data, which may lack: one, a list, or what is there of a pattern.

    Raises
    ------
    InputError
        If one of them lies elsewhere than in the folder of the header or below it.
    OSError
        If the header cannot be read.
    """
    return _data_files(path, read_header(path))


def _data_files(path: Path, head: bytes) -> list[Path]:
    found = _named(head)
    if found is None:
        return []
    names = [found[1]]
    if names[0].startswith(b"LIST"):
        names = [line.strip() for line in path.read_bytes()[found.end() :].splitlines() if line.strip()]
    for name in names:
        # Else a header from elsewhere could have any file of this machine read, and shown in a page.
        if name.startswith(b"/") or b".." in name.split(b"/") or b"\0" in name:
            raise InputError(
                f"{path}: names the data {os.fsdecode(name)!r}; expected a file in the folder of the header or below "
                "it, put it there and write its name alone"
            )
    if len(names) == 1 and (number := _NUMBER.search(names[0])):
        start, end = names[0][: number.start()], names[0].split()[0][number.end() :]
        pattern = f"{glob.escape(os.fsdecode(start))}*{glob.escape(os.fsdecode(end))}"
        return sorted(one for one in path.parent.glob(pattern) if not one.is_dir())
    return [path.parent / os.fsdecode(name) for name in names]


def _check_meaning(path: Path, head: bytes, is_nrrd: bool) -> None:
    """Refuse units of lengths and scales of values, both of which ITK does not look at."""
    if is_nrrd:
        units = _NRRD_UNITS.search(head)
        others = {
            unit.strip().lower() for unit in re.findall(rb'"([^"]*)"', units[1] if units else b"")
        } - _MM
        if others:
            raise InputError(
                f"{path}: its space units are {os.fsdecode(b', '.join(sorted(others)))[:40]}; expected mm, in which "
                "ITK takes all lengths: write it again in mm"
            )
        return
    for name, none in _META_SCALES.items():
        found = re.search(rb"^" + name + rb"\s*=\s*([^\r\n]*)", head, re.MULTILINE)
        if found is None:
            continue
        with contextlib.suppress(ValueError):
            if float(found[1]) == none:
                continue
        raise InputError(
            f"{path}: its {os.fsdecode(name)} is {os.fsdecode(found[1])[:40]}, which ITK does not apply; expected "
            f"{none}: write the values as they are meant"
        )


def check_header(path: Path, head: bytes) -> None:
    """Refuse a header with which ITK's readers would write beyond their memory, or wait for ever.

    MetaIO takes any number of dimensions, both readers take a name with a per cent sign for a format of C.
    """
    is_nrrd = head.startswith(b"NRRD")
    if not is_nrrd:
        counts = _META_DIMENSIONS.findall(head)
        if not counts or not all(re.fullmatch(rb"[1-9]", count) for count in counts):
            got = ", ".join(os.fsdecode(count) for count in counts[:3]) or ""
            raise InputError(
                f"{path}: is no NRRD or MetaImage file, or damaged (NDims is {got[:40]!r}; expected 3); check it"
            )
    # What is checked here is to be what ITK reads.
    if len(head) == _HEADER if is_nrrd else not _META_DATA.search(head) or head.count(b"ElementDataFile") > 1:
        raise InputError(
            f"{path}: is no NRRD or MetaImage file, or damaged (the header has no end, or several); check it"
        )
    _check_meaning(path, head, is_nrrd)
    named = _named(head)
    if named is None:
        return
    is_format = b"%" in named[1] and (not is_nrrd or _NUMBER.search(named[1]))
    if is_format and not _SHORT_NUMBER.fullmatch(named[1]):
        raise InputError(
            f"{path}: names the data {os.fsdecode(named[1])[:40]!r}; expected a name, or a pattern with one number, as "
            "slice%03d.raw"
        )
    for one in _data_files(path, head):
        if not one.is_file():
            raise InputError(f"{path}: its data, {one}, is no regular file; put it there")


def check_data_files(path: Path, head: bytes, size: Sequence[int]) -> None:
    """Refuse a MetaImage header that does not name all files of its slices, or compressed ones.

    ITK would give what was in memory in their place, and divide by a step of zero.
    """
    named = None if head.startswith(b"NRRD") else _named(head)
    if named is None or not (named[1].startswith(b"LIST") or _NUMBER.search(named[1])):
        return
    wanted = size[-1]
    if named[1].startswith(b"LIST"):
        like = _META_LIST.fullmatch(named[1])
        each = int(like[1] or len(size) - 1) if like else 0
        is_whole = 0 < each < len(size)
        if is_whole:
            wanted = math.prod(size[each:])
            # ITK leaves out a last line that has no end.
            lines = path.read_bytes()[named.end() :].split(b"\n")[:-1]
            is_whole = len(lines) >= wanted and all(line.strip() for line in lines[:wanted])
    else:
        numbers = [*map(int, named[1].split()[1:])] if _META_RANGE.fullmatch(named[1]) else [0, 0, 0]
        is_whole = len(numbers) < 3 or (
            numbers[2] > 0 and (numbers[1] - numbers[0]) // numbers[2] + 1 >= wanted
        )
    if not is_whole:
        raise InputError(
            f"{path}: names the data {os.fsdecode(named[1])[:40]!r}; expected {wanted} files: LIST and a line for "
            "each, or a pattern with the first and the last number and the step, as slice%03d.raw 1 90 1"
        )
    if _META_COMPRESSED.search(head):
        raise InputError(f"{path}: has compressed slices in several files; write it again, uncompressed")


def check_compressed(path: Path, head: bytes, wanted: int) -> None:
    """Raise an InputError if compressed voxels are damaged: ITK would take what became of them, or some of it.

    ``wanted`` is the number of bytes that they are to be. Files of single slices are not looked at.
    """
    from isal import isal_zlib

    most = 0  # of the bytes; all that there are
    if head.startswith(b"NRRD"):
        if not _NRRD_COMPRESSED.search(head) or _NRRD_SKIPS.search(head):
            return
    elif not _META_COMPRESSED.search(head):
        return
    elif said := _META_SIZE.search(head):
        most = int(said[1])  # ITK reads no more than that
    named = _named(head)
    data = path if named is None else path.parent / os.fsdecode(named[1])
    if data == path and not head.startswith(b"NRRD") and not most:
        # ITK would take the header for voxels too, and give what was in memory.
        raise InputError(
            f"{path}: has compressed voxels, but no CompressedDataSize; expected their bytes, write it again"
        )
    if not data.is_file():
        return
    stream, size, left = isal_zlib.decompressobj(_ZLIB_OR_GZIP), 0, most or data.stat().st_size
    with data.open("rb") as file:
        file.seek(len(head) if data == path else 0)
        try:
            while not stream.eof and (block := file.read(min(left, _CHUNK))):
                left -= len(block)
                size += len(stream.decompress(block))
        except isal_zlib.IsalError as error:  # type: ignore[misc]  # a class, which its stub does not say
            raise InputError(f"{data}: cannot be decompressed ({error}); fetch it again") from error
    if not stream.eof or size < wanted:
        raise InputError(
            f"{data}: is cut off or damaged (got {size} bytes of voxels; expected {wanted}); fetch it again"
        )
