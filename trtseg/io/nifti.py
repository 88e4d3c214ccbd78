"""NIfTI-1 and NIfTI-2 files: a CT or labels in, labels out."""

from __future__ import annotations

import io
import math
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from trtseg.errors import ArgumentError, InputError
from trtseg.io.checks import ct_geometry
from trtseg.io.header import header_affine
from trtseg.io.names import NIFTI as ENDINGS
from trtseg.io.voxels import SLAB_VOXELS, Convert, Where, check_dtype
from trtseg.notice import Signature, checksum_of, signature, signed
from trtseg.volume import Geometry, spacing_mm

_GZIP_MAGIC = b"\x1f\x8b"
# Deflate codes at most 258 bytes in 2 bits.
_MAX_DEFLATE_RATIO = 1032
_SIZES = {1: 348, 2: 540}  # of the header of a NIfTI-1 and a NIfTI-2 file
_MAGICS = {1: b"n+1", 2: b"n+2"}
_PAIR_MAGICS = (b"ni1", b"ni2")
_UINT8 = 2
_INTENT_LABEL = 1002
_MAX_NIFTI1_AXIS = 32767
_DEVICES = ("/dev/", "/proc/")  # names of open files, as /dev/stdin
_FETCH = "the file is truncated or corrupt, fetch it again"


def read_nifti(name: str, convert: Convert) -> tuple[np.ndarray, Geometry]:
    """Read the voxels of a ``.nii`` or ``.nii.gz`` file, and its grid.

    NIfTI-1 and NIfTI-2, either byte order, any integer or float type of up to 64 bits, with or without a scale. The
    orientation is that of `trtseg.io.header.header_affine`. Whether a file is compressed is told by its content, not by
    its name, and gzip's checksum is looked at. Beside the result only a few megabytes are in memory at any time.

    Raises
    ------
    InputError
        If there is no such file, it is truncated or corrupt, or it has no grid or no values of its kind.
    """
    from isal import igzip, isal_zlib

    with _open(name) as file:
        status = os.fstat(file.fileno())
        size = status.st_size if stat.S_ISREG(status.st_mode) else None  # that of a pipe is not known
        if size is not None and not name.lower().endswith(ENDINGS) and not name.startswith(_DEVICES):
            raise InputError(
                f"{name}: unknown file type; expected .nii, .nii.gz, .nrrd, .mha, .img, or DICOM; unpack archives "
                "but .zip, convert others to NIfTI"
            )
        try:
            # By content: misnamed files are common and harmless. A pipe cannot be wound back.
            compressed = file.peek(2).startswith(_GZIP_MAGIC)
            stream: IO[bytes] = igzip.open(file, "rb") if compressed else file
            header, version = _parse_header(name, stream, compressed)
            shape = _shape(name, header)
            dtype = _dtype(name, header)
            offset = _offset(name, header, version)
            slope, inter = _scale(name, header)
            affine, warnings = header_affine(name, header)
            geometry = ct_geometry(name, shape, affine=affine, source=header, warnings=warnings)
            wanted = offset + math.prod(shape) * dtype.itemsize
            most = None if size is None else size * (_MAX_DEFLATE_RATIO if compressed else 1)
            if most is not None and wanted > most:  # nothing is allocated
                grid = " x ".join(map(str, shape))
                raise InputError(
                    f"{name}: the header promises {wanted} bytes ({grid} voxels of {dtype.name}), but the file "
                    f"has {size}{' compressed' if compressed else ''}; {_FETCH}"
                )
            _skip(name, stream, offset - _SIZES[version])
            return convert(
                name, geometry, _pieces(name, stream, geometry.grid_shape, dtype), slope, inter
            ), geometry
        except isal_zlib.IsalError as error:  # type: ignore[misc]  # a class, which its stub does not say
            raise InputError(f"{name}: cannot be decompressed ({error}); {_FETCH}") from error
        except (OSError, EOFError, zlib.error) as error:  # gzip's errors are of these kinds
            raise InputError(f"{name}: cannot be read ({error}); {_FETCH}") from error


def peek_nifti(path: str | os.PathLike[str]) -> tuple[Signature | None, bool]:
    """Look into the header: what labels of trtseg say of themselves, and whether voxels are unscaled bytes.

    ``(None, False)`` where that cannot be known.
    """
    from isal import igzip, isal_zlib

    name = os.fspath(path)
    try:
        with _open(name) as file:
            compressed = file.peek(2).startswith(_GZIP_MAGIC)
            header, _ = _parse_header(name, igzip.open(file, "rb") if compressed else file, compressed)
            small = _dtype(name, header).itemsize == 1 and _scale(name, header) == (1.0, 0.0)
            return signed(header["descrip"].item().decode("latin-1")), small
    except (InputError, OSError, EOFError, zlib.error, isal_zlib.IsalError):  # type: ignore[misc]
        return None, False


def header_of(image: Any) -> Any:
    """Copy the NIfTI header of a nibabel image, to write results with; None if the image has no such header.

    The image's affine counts, not the header's, where the two differ. nibabel saves images likewise.
    """
    from nibabel.nifti1 import Nifti1Header

    if not isinstance(image.header, Nifti1Header):  # the base of the headers of NIfTI-2 and of pairs too
        return None
    header: Any = image.header.copy()
    if not np.allclose(header.get_best_affine(), image.affine, equal_nan=True):
        header.set_sform(image.affine, code="aligned")
        header["qform_code"], header["pixdim"][1:4] = 0, spacing_mm(image.affine)
    return header


def _open(name: str) -> io.BufferedReader:
    try:
        return Path(name).open("rb")
    except IsADirectoryError as error:
        raise InputError(f"{name}: is a folder; expected a .nii or .nii.gz file") from error
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{name}: no permission to read it; change the file's mode or owner") from error
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise InputError(f"{name}: cannot be opened ({error}); check the path") from error


def _parse_header(name: str, stream: IO[bytes], compressed: bool) -> tuple[Any, int]:
    """Read the header and its version; its extensions, which may hold patient data, are not read."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = stream.read(_SIZES[1])
    sizes = {"<": int.from_bytes(block[:4], "little"), ">": int.from_bytes(block[:4], "big")}
    classes: tuple[tuple[int, Any], ...] = ((1, Nifti1Header), (2, Nifti2Header))
    for version, cls in classes:
        for order, size in sizes.items():
            if size != _SIZES[version]:
                continue
            block += stream.read(_SIZES[version] - len(block))
            if len(block) < _SIZES[version]:
                raise InputError(f"{name}: the header is cut off after {len(block)} bytes; {_FETCH}")
            # Without nibabel's checks, which repair fields: results carry the geometry of the input byte for byte.
            header = cls(block, endianness=order, check=False)
            magic = header["magic"].item()
            if magic in _PAIR_MAGICS:
                raise InputError(f"{name}: is half of a .hdr/.img pair; save it as one .nii or .nii.gz file")
            if magic != _MAGICS[version]:
                raise InputError(
                    f"{name}: not NIfTI but perhaps Analyze (magic {magic!r}); convert it to .nii.gz"
                )
            return header, version
    if compressed:
        raise InputError(f"{name}: gzip, but what is inside is not NIfTI; expected a NIfTI image")
    if not block:
        raise InputError(f"{name}: is empty; expected a NIfTI image: {_FETCH}")
    raise InputError(f"{name}: neither gzip nor NIfTI (it starts with {block[:8]!r}); expected a NIfTI image")


def _shape(name: str, header: Any) -> tuple[int, ...]:
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise InputError(f"{name}: the header promises {dim[0]} dimensions; expected 3; {_FETCH}")
    return tuple(dim[1 : dim[0] + 1])


def _dtype(name: str, header: Any) -> np.dtype[Any]:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (KeyError, HeaderDataError) as error:
        raise InputError(f"{name}: unknown voxel type, code {int(header['datatype'])}; {_FETCH}") from error
    check_dtype(name, dtype)
    return dtype


def _offset(name: str, header: Any, version: int) -> int:
    """Return the byte at which the voxels start; some tools write 0 for "right behind the header"."""
    offset = float(header["vox_offset"])
    if offset == 0:
        return _SIZES[version] + 4
    if not math.isfinite(offset) or offset < _SIZES[version]:
        raise InputError(f"{name}: the header lets voxels start at byte {offset:g}, inside itself; {_FETCH}")
    return int(offset)


def _scale(name: str, header: Any) -> tuple[float, float]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0  # the standard and nibabel take such a slope for "no scale"
    if not math.isfinite(inter):
        raise InputError(f"{name}: the rescale intercept is {inter}; repair scl_inter in the header")
    return slope, inter


def _skip(name: str, stream: IO[bytes], count: int) -> None:
    """Read past extensions."""
    while count > 0:
        block = stream.read(min(count, 1 << 20))
        if not block:
            raise InputError(f"{name}: ends before the voxels; {_FETCH}")
        count -= len(block)


def _pieces(
    name: str, stream: IO[bytes], shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> Iterator[tuple[Where, np.ndarray]]:
    """Read slabs along the slowest axis, k, as arrays in index order ``(i, j, k)``."""
    i, j, k = shape
    step = max(1, SLAB_VOXELS // (i * j))
    for start in range(0, k, step):
        n = min(step, k - start)
        wanted = i * j * n * dtype.itemsize
        block = stream.read(wanted)
        if len(block) < wanted:
            complete = start + len(block) // (i * j * dtype.itemsize)
            raise InputError(f"{name}: ends after {complete} of {k} slices; {_FETCH}")
        slab = np.frombuffer(block, dtype).reshape(n, j, i).transpose(2, 1, 0)
        yield (slice(None), slice(None), slice(start, start + n)), slab
    while stream.read(1 << 20):  # gzip compares its checksum at the end of the stream: read up to there
        pass


def write_nifti(
    path: str | os.PathLike[str], labels: np.ndarray, geometry: Geometry, fingerprint: str = ""
) -> None:
    """Write labels as uint8 on exactly the grid of the input.

    If the input was NIfTI, so that the geometry's source is its header, the geometry fields of that header are
    written unchanged; else a new header is made. Descriptions, names and extensions, which can hold patient
    data, are left out. The same labels give the same bytes.

    The file is written in place: call this with a temporary path of `trtseg.io.atomic.atomic`.

    Parameters
    ----------
    path : path
        The file is compressed if the name ends in ``.gz``.
    labels : ndarray
        uint8, canonical ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    geometry : Geometry
        The grid of the input.
    fingerprint : str
        Stands in the header, see `trtseg.notice.signature`.

    Raises
    ------
    ArgumentError
        If the labels do not lie on that grid.
    OSError
        If writing fails; `atomic` turns it into an OutputError that names the target.
    """
    from isal import igzip

    name = os.fspath(path)
    if labels.dtype != np.uint8 or labels.shape != geometry.canonical_shape:
        raise ArgumentError(
            f"labels: got {labels.dtype} {labels.shape}; expected uint8 [Z,Y,X] = {geometry.canonical_shape}"
        )
    with Path(name).open("wb") as file:
        if not name.lower().endswith(".gz"):
            _write(file, labels, geometry, fingerprint)
            return
        # Neither time nor name goes into the gzip header.
        with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as stream:
            _write(stream, labels, geometry, fingerprint)


def _write(stream: Any, labels: np.ndarray, geometry: Geometry, fingerprint: str) -> None:
    header = _label_header(geometry)
    header["descrip"] = signature(fingerprint, checksum_of(labels)).encode("ascii")
    stream.write(header.binaryblock + bytes(4))  # four zeros: no extensions
    grid = geometry.grid(geometry.restore(labels))
    i, j, k = grid.shape
    step = max(1, SLAB_VOXELS // (i * j))
    for start in range(0, k, step):
        stream.write(np.ascontiguousarray(grid[:, :, start : start + step].transpose(2, 1, 0)).data)


def _label_header(geometry: Geometry) -> Any:
    """Make the header of a label map on the input's grid."""
    from nibabel.nifti1 import Nifti1Header

    source = geometry.source
    header: Any = source.copy() if isinstance(source, Nifti1Header) else _new_header(geometry)
    version = 2 if int(header["sizeof_hdr"]) == _SIZES[2] else 1
    header["magic"] = _MAGICS[version]
    header["vox_offset"] = _SIZES[version] + 4
    header["datatype"], header["bitpix"] = _UINT8, 8
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 2
    header["intent_code"] = _INTENT_LABEL
    for field in ("intent_p1", "intent_p2", "intent_p3", "glmax", "glmin"):
        if field in header:
            header[field] = 0
    for field in ("intent_name", "aux_file", "data_type", "db_name", "unused_str"):
        if field in header:
            header[field] = b""
    return header


def _new_header(geometry: Geometry) -> Any:
    """Make a header for a grid that came without a NIfTI header: NIfTI-1 unless an axis is too long for it."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    header = Nifti2Header() if max(geometry.shape) > _MAX_NIFTI1_AXIS else Nifti1Header()
    header.set_data_shape(geometry.shape)
    header.set_xyzt_units("mm")
    header.set_qform(geometry.affine, code="scanner")  # sets the spacing too
    header.set_sform(geometry.affine, code="scanner")
    if not np.allclose(header.get_qform(), geometry.affine, rtol=1e-4, atol=1e-3):
        header["qform_code"] = 0  # a quaternion cannot hold shear
    return header
