"""NRRD and MetaImage files through SimpleITK: a CT or labels in, labels out."""

from __future__ import annotations

import glob
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtseg.errors import InputError, OutputError
from trtseg.io.checks import ct_geometry, ct_volume
from trtseg.io.header import no_orientation
from trtseg.io.voxels import Convert, check_dtype, slabs, to_hu
from trtseg.notice import signature, signed
from trtseg.resources import check_memory
from trtseg.volume import LPS_TO_RAS, Geometry, Volume, spacing_mm
from trtseg.warnings import ResultWarning

_KEY = "trtseg"  # of the signature in the metadata of labels
# Where a header names the file with its data, or a list or a pattern of several; the last line of a MetaImage header.
_META_DATA = re.compile(rb"^ElementDataFile\s*=[ \t]*([^\r\n]+?)[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_NRRD_DATA = re.compile(
    rb"(?:\A|(?<=[\r\n]))data ?file:(?!=)[ \t]*([^\r\n]+?)[ \t]*(?:\r?\n|\Z)", re.IGNORECASE
)
_NUMBER = re.compile(rb"%\d*[du]")  # of a slice, in the pattern of its file
_SHORT_NUMBER = re.compile(rb"[^%]*%\d{0,2}[du][^%]*")
_HEADER = 1 << 20  # bytes; Slicer names each segment of a label map in it
_META_DIMENSIONS = re.compile(rb"NDims[\s=:]*([^\s=:]*)")
_META_COMPRESSED = re.compile(rb"^CompressedData\s*=\s*[Tt1]", re.MULTILINE)
_META_SIZE = re.compile(rb"^CompressedDataSize\s*=\s*(\d+)", re.MULTILINE)
_META_DIRECTIONS = re.compile(rb"^(?:TransformMatrix|Rotation|Orientation)\s*=", re.MULTILINE)
_NRRD_END = re.compile(rb"\r?\n\r?\n")
_NRRD_COMPRESSED = re.compile(rb"^encoding:\s*gz", re.IGNORECASE | re.MULTILINE)
_NRRD_SKIPS = re.compile(rb"^(?:line|byte) ?skip:", re.IGNORECASE | re.MULTILINE)
_CHUNK = 1 << 16  # compressed bytes at a time, of which no more than 64 MiB can come
_ZLIB_OR_GZIP = 47  # the code that asks zlib to tell which of the two it is


@dataclass(frozen=True)
class ItkGrid:
    """The grid of a file as ITK has it, in LPS mm: the source of a geometry, so that labels get the same numbers."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def affine(self) -> np.ndarray:
        """Index ``(i, j, k)`` to RAS mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        affine[:3, 3] = self.origin
        return LPS_TO_RAS @ affine

    @classmethod
    def of(cls, affine: np.ndarray) -> ItkGrid:
        """Make the grid of an affine."""
        lps, spacing = LPS_TO_RAS @ affine, spacing_mm(affine)
        return cls(spacing, tuple(lps[:3, 3].tolist()), tuple((lps[:3, :3] / spacing).ravel().tolist()))


def read_itk(name: str, convert: Convert) -> tuple[np.ndarray, Geometry]:
    """Read the voxels of a ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd`` file, and its grid.

    Raises
    ------
    InputError
        If SimpleITK is not installed, the file cannot be read, or it has no grid or no values of its kind.
    """
    sitk = _simpleitk(InputError, name)
    if not os.path.isfile(name):  # noqa: PTH113
        problem = "is no regular file" if os.path.exists(name) else "no such file"  # noqa: PTH110
        raise InputError(f"{name}: {problem}; check the path")
    reader, head = _reader(sitk, name)
    grid = _grid(name, reader, reader.GetNumberOfComponents())
    size, dimensions = reader.GetSize(), reader.GetDimension()
    warnings: tuple[ResultWarning, ...] = ()
    if not _has_directions(reader, head):
        warnings = (no_orientation("right to left, front to back, feet to head"),)
    geometry = ct_geometry(name, size, affine=grid.affine(), source=grid, warnings=warnings)
    check_memory(name, 8 * math.prod(size))
    voxel = sitk.Image([1] * dimensions, reader.GetPixelID())
    _check_compressed(Path(name), head, math.prod(size) * voxel.GetSizeOfPixelComponent())
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{name}: the voxels cannot be read ({_reason(error)}): they are cut off, missing or of an "
            "encoding that is not known; fetch the file again, or write it uncompressed"
        ) from error
    return _converted(name, image, geometry, convert), geometry


def from_itk(image: Any) -> Volume:
    """Take a CT in Hounsfield units from a SimpleITK image, on the grid that the image has.

    Raises
    ------
    InputError
        If it is not one CT volume in HU.
    """
    grid = _grid("image", image, image.GetNumberOfComponentsPerPixel())
    geometry = ct_geometry("image", image.GetSize(), affine=grid.affine(), source=grid)
    return ct_volume("image", _converted("image", image, geometry, to_hu), geometry)


def write_itk(
    path: str | os.PathLike[str], labels: np.ndarray, geometry: Geometry, fingerprint: str = ""
) -> None:
    """Write labels, uint8 canonical ``[Z, Y, X]``, compressed, on exactly the grid of the input.

    The file, ``.nrrd`` or ``.mha``, is written in place: call this with a temporary path of `trtseg.io.atomic.atomic`.

    Raises
    ------
    ArgumentError
        If the labels do not lie on that grid.
    OSError
        If writing fails; `atomic` turns it into an OutputError that names the target.
    """
    sitk = _simpleitk(OutputError, os.fspath(path))
    grid = geometry.grid(geometry.restore(labels))
    image = sitk.GetImageFromArray(grid.transpose(2, 1, 0))
    place = geometry.source if isinstance(geometry.source, ItkGrid) else ItkGrid.of(geometry.affine)
    image.SetSpacing(place.spacing)
    image.SetOrigin(place.origin)
    image.SetDirection(place.direction)
    image.SetMetaData(_KEY, signature(fingerprint))
    try:
        sitk.WriteImage(image, os.fspath(path), True)
    except RuntimeError as error:
        raise OSError(_reason(error)) from error


def peek_itk(path: str | os.PathLike[str]) -> tuple[str | None, bool]:
    """Look into the header: the fingerprint of labels of trtseg, see `signed`, and whether voxels have 8 bits.

    ``(None, False)`` where that cannot be known.
    """
    try:
        sitk = _simpleitk(InputError, os.fspath(path))
        reader, _ = _reader(sitk, os.fspath(path))
    except InputError:
        return None, False
    made = signed(reader.GetMetaData(_KEY)) if reader.HasMetaDataKey(_KEY) else None
    return made, reader.GetPixelID() in (sitk.sitkUInt8, sitk.sitkInt8)


def check_installed(name: str) -> None:
    """Raise an OutputError about the file ``name`` unless SimpleITK is installed."""
    _simpleitk(OutputError, name)


def _converted(name: str, image: Any, geometry: Geometry, convert: Convert) -> np.ndarray:
    """Convert the voxels of an image, canonical ``[Z, Y, X]``."""
    import SimpleITK as sitk

    stored = sitk.GetArrayViewFromImage(image)  # [..., k, j, i]
    check_dtype(name, stored.dtype)
    return convert(name, geometry, slabs(geometry.grid(stored.transpose())))


def _grid(name: str, image: Any, components: int) -> ItkGrid:
    """Take the grid of an image, or of a reader that knows the header; an InputError if it is no volume of numbers."""
    dimensions = image.GetDimension()
    if components > 1:
        raise InputError(
            f"{name}: got {components} numbers a voxel; expected one in HU, convert from the original CT"
        )
    if dimensions < 3:
        raise InputError(f"{name}: got a {dimensions}-D image; expected a volume, stack the slices to 3-D")
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions))[:3, :3]
    return ItkGrid(image.GetSpacing()[:3], image.GetOrigin()[:3], tuple(direction.ravel().tolist()))


def _read_header(path: Path) -> bytes:
    """Read the header of a NRRD or MetaImage file, up to the voxels if they follow in the same file."""
    with path.open("rb") as file:
        start = file.read(_HEADER)
    end = (_NRRD_END if start.startswith(b"NRRD") else _META_DATA).search(start)
    return start if end is None else start[: end.end()]


def _named(head: bytes) -> re.Match[bytes] | None:
    """What a header names as its data; None if that follows in the same NRRD file."""
    return (_NRRD_DATA if head.startswith(b"NRRD") else _META_DATA).search(head)


def data_files(path: Path) -> list[Path]:
    """List the files that a header names for its data, which may lack: one, a list, or what is there of a pattern.

    Raises
    ------
    InputError
        If one of them lies elsewhere than in the folder of the header or below it.
    OSError
        If the header cannot be read.
    """
    return _data_files(path, _read_header(path))


def _data_files(path: Path, head: bytes) -> list[Path]:
    found = _named(head)
    if found is None or (found[1].lower() == b"local" and not head.startswith(b"NRRD")):
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
        return sorted(path.parent.glob(pattern))
    return [path.parent / os.fsdecode(name) for name in names]


def _check_header(path: Path, head: bytes) -> None:
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
    named = _named(head)
    # What is checked here is to be what ITK reads.
    if len(head) == _HEADER if is_nrrd else named is None or head.count(b"ElementDataFile") > 1:
        raise InputError(
            f"{path}: is no NRRD or MetaImage file, or damaged (the header has no end, or several); check it"
        )
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


def _has_directions(reader: Any, head: bytes) -> bool:
    """Whether a header says how the patient lies, and ITK understands it."""
    if head.startswith(b"NRRD"):
        return reader.HasMetaDataKey("NRRD_space") and "superior" in reader.GetMetaData("NRRD_space")
    return _META_DIRECTIONS.search(head) is not None


def _check_compressed(path: Path, head: bytes, wanted: int) -> None:
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
    data = path if named is None or named[1].lower() == b"local" else path.parent / os.fsdecode(named[1])
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


def _reader(sitk: Any, name: str) -> tuple[Any, bytes]:
    """Make a reader that knows the header; returns the header, too."""
    try:
        head = _read_header(Path(name))
        _check_header(Path(name), head)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); check the path") from error
    reader = sitk.ImageFileReader()
    # By default ITK tries its readers of all formats, whatever the name says.
    reader.SetImageIO("NrrdImageIO" if head.startswith(b"NRRD") else "MetaImageIO")
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            f"{name}: is no NRRD or MetaImage file, or damaged ({_reason(error)}); check it"
        ) from error
    return reader, head


def _simpleitk(error: type[InputError | OutputError], name: str) -> Any:
    try:
        import SimpleITK
    except ImportError as missing:
        raise error(
            f"{name}: NRRD and MetaImage need SimpleITK ({missing}); pip install 'trtseg[itk]', or use NIfTI"
        ) from missing
    SimpleITK.ProcessObject.GlobalWarningDisplayOff()  # a library prints nothing
    return SimpleITK


def _reason(error: RuntimeError) -> str:
    """Return the last line of ITK's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
