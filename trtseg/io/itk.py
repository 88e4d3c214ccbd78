"""NRRD and MetaImage files through SimpleITK: a CT or labels in, labels out."""

from __future__ import annotations

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
from trtseg.io.itk_header import check_compressed, check_data_files, check_header, read_header
from trtseg.io.voxels import Convert, check_dtype, slabs, to_hu
from trtseg.notice import Signature, checksum_of, signature, signed
from trtseg.resources import check_memory
from trtseg.volume import LPS_TO_RAS, Geometry, Volume, spacing_mm
from trtseg.warnings import ResultWarning

_KEY = "trtseg"  # of the signature in the metadata of labels
_META_DIRECTIONS = re.compile(rb"^(?:TransformMatrix|Rotation|Orientation)\s*=", re.MULTILINE)


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
    check_data_files(Path(name), head, size)
    check_memory(name, 8 * math.prod(size))
    voxel = sitk.Image([1] * dimensions, reader.GetPixelID())
    check_compressed(Path(name), head, math.prod(size) * voxel.GetSizeOfPixelComponent())
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
    image.SetMetaData(_KEY, signature(fingerprint, checksum_of(labels)))
    try:
        sitk.WriteImage(image, os.fspath(path), True)
    except RuntimeError as error:
        raise OSError(_reason(error)) from error


def peek_itk(path: str | os.PathLike[str]) -> tuple[Signature | None, bool]:
    """Look into the header: what labels of trtseg say of themselves, and whether voxels have 8 bits.

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


def _has_directions(reader: Any, head: bytes) -> bool:
    """Whether a header says how the patient lies, and ITK understands it."""
    if head.startswith(b"NRRD"):
        return reader.HasMetaDataKey("NRRD_space") and "superior" in reader.GetMetaData("NRRD_space")
    return _META_DIRECTIONS.search(head) is not None


def _reader(sitk: Any, name: str) -> tuple[Any, bytes]:
    """Make a reader that knows the header; returns the header, too."""
    try:
        head = read_header(Path(name))
        check_header(Path(name), head)
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
