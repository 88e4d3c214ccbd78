"""The pixels of a DICOM file, of any transfer syntax -> int16 in HU."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.fit import AIR_HU
from trtseg.io.dicom.dataset import LARGE
from trtseg.io.dicom.frames import Slice
from trtseg.io.dicom.header import integer, numbers, text
from trtseg.resources import is_lack_of_memory, memory_for

_PIXEL_DATA = 0x7FE00010
_EXTENDED_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_INT16 = np.iinfo(np.int16)
_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}  # start of a frame, of JPEG and of JPEG-LS
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", _BIG_ENDIAN)
_END = b"\xff\xd9"  # the end of a picture in JPEG, JPEG-LS and JPEG 2000
_JPEG_LS, _STRICT = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "pyjpegls"
_J2K = b"\xff\x4f\xff\x51"


@dataclass(frozen=True)
class _Format:
    """How stored values lie in the bytes."""

    allocated: int
    stored: int
    signed: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    def value(self, number: float) -> int:
        """A stored value that the header may have given with the other sign."""
        whole = int(number) % (1 << self.allocated)
        return whole - (1 << self.allocated) if self.signed and whole >> (self.allocated - 1) else whole

    def is_stored(self, value: int) -> bool:
        low = -(1 << (self.stored - 1)) if self.signed else 0
        return low <= value < low + (1 << self.stored)


def to_hu(name: str, dataset: Any, slices: Sequence[Slice]) -> np.ndarray:
    """Decode all frames of a file, and rescale them.

    Padding becomes air (-1000 HU). Other values are computed in float64 where they are no integers, rounded half to
    even and saturated to int16.

    Parameters
    ----------
    name : str
        The file, for messages.
    dataset : pydicom.Dataset
        The whole file.
    slices : sequence of Slice
        What `trtseg.io.dicom.frames.slices_of` says of it.

    Returns
    -------
    ndarray
        int16 ``[frame, row, column]``.

    Raises
    ------
    InputError
        If the pixels are damaged, are not as many as the header says, are no grey values, or no decoder for their
        transfer syntax is installed.
    """
    format_ = _format(name, dataset)
    size = slices[0].size
    padding = _padding(name, dataset, format_)
    frames = _frames(name, dataset, format_, len(slices), size)
    needed = len(slices) * size[0] * size[1] * 2 + size[0] * size[1] * format_.allocated
    with memory_for(name, needed) if needed > LARGE else nullcontext():
        hu = np.empty((len(slices), *size), np.int16)
        for out, stored, one in zip(hu, frames, slices, strict=True):
            _rescale(stored, format_, one, padding, out)
    return hu


def stored_frames(name: str, dataset: Any, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Decode the frames of a Segmentation one by one, as they are stored, which may be in bits: ``[row, column]``."""
    return _frames(name, dataset, _format(name, dataset, ("MONOCHROME", "PALETTE"), (1, 8, 16)), count, size)


def transfer_syntax(name: str, dataset: Any) -> str:
    """Transfer syntax of a file; where it does not say, what its elements look like."""
    meta = getattr(dataset, "file_meta", None)
    said = "" if meta is None else text(meta, "TransferSyntaxUID")
    if said:
        return said
    data = _pixel_data(name, dataset)
    if data[:4] == b"\xfe\xff\x00\xe0":
        raise InputError(f"{name}: compressed pixels, but no Transfer Syntax UID; fetch the file again")
    implicit, little = dataset.original_encoding
    if little is False:
        return _BIG_ENDIAN
    return "1.2.840.10008.1.2" if implicit is not False else "1.2.840.10008.1.2.1"


def padding_hu(name: str, header: Any, slices: Sequence[Slice]) -> tuple[float, float] | None:
    """Lowest and highest HU that the padding of a file would have if it were no padding; None if the file has none."""
    padding = _padding(name, header, _format(name, header))
    if padding is None:
        return None
    ends = [value * one.slope + one.intercept for value in padding for one in slices]
    return min(ends), max(ends)


def _frames(
    name: str, dataset: Any, format_: _Format, count: int, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Check how many pixels there are, then decode each frame when it is asked for: ``[row, column]``."""
    syntax = transfer_syntax(name, dataset)
    data = _pixel_data(name, dataset)
    if syntax not in _NATIVE:
        return _decoded(name, _packed(name, dataset, data, count, size), syntax, format_, size)
    needed = (count * size[0] * size[1] * format_.allocated + 7) // 8
    in_words = syntax == _BIG_ENDIAN and format_.allocated < 16 and dataset.get_item(_PIXEL_DATA).VR == "OW"
    needed += in_words * needed % 2
    _check_length(name, len(data), needed, size[1] * (format_.allocated // 8))
    if in_words:
        data = np.frombuffer(data[: len(data) & ~1], ">u2").astype("<u2").tobytes()
    if format_.allocated == 1:
        return _unpacked(np.frombuffer(data, np.uint8), count, size)
    dtype = format_.dtype.newbyteorder(">" if syntax == _BIG_ENDIAN else "<")
    return iter(np.frombuffer(data, dtype, count * size[0] * size[1]).reshape(count, *size))


def _unpacked(data: np.ndarray, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames of bits, the lowest of a byte first, which follow each other without a gap."""
    pixels = size[0] * size[1]
    for k in range(count):
        byte, skipped = divmod(k * pixels, 8)
        bits = np.unpackbits(data[byte : byte + (skipped + pixels + 7) // 8], bitorder="little")
        yield bits[skipped : skipped + pixels].reshape(size)


def _format(
    name: str, dataset: Any, kinds: tuple[str, ...] = ("MONOCHROME",), bits: tuple[int, ...] = (8, 16, 32)
) -> _Format:
    samples = integer(name, dataset, "SamplesPerPixel", 1)
    kind = text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if samples != 1 or not kind.startswith(kinds):
        raise InputError(
            f"{name}: {samples} samples a pixel, {kind!r}; expected grey values in HU, one a pixel"
        )
    allocated = integer(name, dataset, "BitsAllocated")
    stored = integer(name, dataset, "BitsStored", allocated)
    high = integer(name, dataset, "HighBit", stored - 1)
    representation = integer(name, dataset, "PixelRepresentation", 0)
    if allocated not in bits or not 1 <= stored <= allocated or representation not in (0, 1):
        raise InputError(
            f"{name}: BitsAllocated {allocated}, BitsStored {stored}, PixelRepresentation {representation}; expected "
            f"{bits[0]}, {bits[1]} or {bits[2]} bits, as many or fewer of them used, and 0 or 1"
        )
    if high != stored - 1:
        raise InputError(
            f"{name}: HighBit is {high} for {stored} bits; expected {stored - 1}, the file is damaged"
        )
    return _Format(allocated, stored, representation == 1)


def _pixel_data(name: str, dataset: Any) -> bytes:
    try:
        element = dataset.get_item(_PIXEL_DATA)
        data = None if element is None else element.value
    except Exception:  # an element without a value that its type could have
        data = None
    if not isinstance(data, (bytes, bytearray)) or not data:
        raise InputError(
            f"{name}: holds no pixels; expected a picture, truncated files must be fetched again"
        )
    return bytes(data)


def _check_length(name: str, got: int, expected: int, row: int) -> None:
    if not expected <= got < expected + max(row, 2):
        raise InputError(
            f"{name}: {got} bytes of pixels, and a header that asks for {expected}; the file is damaged or truncated, "
            "fetch it again"
        )


def _padding(name: str, dataset: Any, format_: _Format) -> tuple[int, int] | None:
    """The lowest and the highest stored value of padding."""
    one = numbers(name, dataset, "PixelPaddingValue", 1)
    if one is None:
        return None
    other = numbers(name, dataset, "PixelPaddingRangeLimit", 1) or one
    low, high = sorted((format_.value(one[0]), format_.value(other[0])))
    return low, high


def _rescale(
    raw: np.ndarray, format_: _Format, one: Slice, padding: tuple[int, int] | None, out: np.ndarray
) -> None:
    """Write stored values as HU into ``out``; bits above the stored ones hold anything."""
    stored = raw.astype(format_.dtype, copy=False)  # in the order of bytes of this machine
    if format_.stored < format_.allocated:
        unused = format_.allocated - format_.stored
        stored = (stored << unused) >> unused
    if one.slope == 1 and one.intercept == int(one.intercept):
        hu = np.add(stored, int(one.intercept), dtype=np.int32 if format_.allocated < 32 else np.int64)
    else:
        hu = np.rint(stored * one.slope + one.intercept)
    np.clip(hu, _INT16.min, _INT16.max, out=hu)
    np.copyto(out, hu, casting="unsafe")
    if padding is not None:
        seen = stored if format_.is_stored(padding[0]) else raw
        out[(seen >= padding[0]) & (seen <= padding[1])] = AIR_HU


def _packed(name: str, dataset: Any, data: bytes, count: int, size: tuple[int, int]) -> list[bytes]:
    """Find the compressed frames; refuse those that do not have the size that the header says, or have no end."""
    from pydicom.encaps import generate_frames

    try:
        offsets: Any = tuple(dataset.get(keyword) for keyword in _EXTENDED_OFFSETS)
        offsets = offsets if all(offsets) else None
        frames = list(generate_frames(data, number_of_frames=count, extended_offsets=offsets))
    except Exception as error:  # damaged lengths make pydicom raise errors of many types
        raise _undecodable(name, error) from error
    if len(frames) != count:
        raise InputError(f"{name}: {len(frames)} compressed frames; expected {count}, fetch it again")
    for frame in frames:
        coded = coded_size(frame)
        if coded is not None and coded != (*size, 1):
            rows, columns, samples = coded
            raise InputError(
                f"{name}: a compressed picture of {rows} x {columns} x {samples} pixels in a file of {size[0]} x "
                f"{size[1]}; the file is damaged, fetch it again"
            )
        if coded is not None and not frame.rstrip(b"\0").endswith(_END):
            raise InputError(
                f"{name}: a compressed picture without an end; the file is damaged, fetch it again"
            )
    return frames


def _decoded(
    name: str, frames: Sequence[bytes], syntax: str, format_: _Format, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    from pydicom.encaps import encapsulate

    decoder = _decoder(name, syntax)
    # The other decoder of JPEG-LS, to which pydicom turns where this one refuses, makes up what is damaged.
    strict = (
        {"decoding_plugin": _STRICT} if _STRICT in decoder.available_plugins and syntax in _JPEG_LS else {}
    )
    options = {
        "rows": size[0], "columns": size[1], "samples_per_pixel": 1, "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2", "pixel_keyword": "PixelData",
        "bits_allocated": format_.allocated, "bits_stored": format_.stored,
        "pixel_representation": int(format_.signed), "planar_configuration": 0, **strict,
    }  # fmt: skip
    for frame in frames:
        try:
            yield decoder.as_array(encapsulate([frame]), raw=True, index=0, **options)[0]
        except Exception as error:  # decoders raise errors of many types
            raise _undecodable(name, error) from error


def _undecodable(name: str, error: Exception) -> Exception:
    """What to raise instead of an error of a decoder: the error itself if there was no memory."""
    if is_lack_of_memory(error):
        return error
    return InputError(f"{name}: the compressed pixels cannot be decoded; the file is damaged, fetch it again")


def coded_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples that a picture of the JPEG family says it has; None for RLE or if damaged."""
    try:
        if (at := frame[:256].find(_J2K)) >= 0:
            right, bottom, left, top = struct.unpack_from(">4I", frame, at + 8)
            return bottom - top, right - left, struct.unpack_from(">H", frame, at + 40)[0]
        at = 2 if frame[:2] == b"\xff\xd8" else len(frame)
        while at < len(frame):
            mark, kind, length = struct.unpack_from(">BBH", frame, at)
            if mark != 0xFF:
                return None
            if kind in _JPEG_SIZES:
                rows, columns, samples = struct.unpack_from(">HHB", frame, at + 5)
                return rows, columns, samples
            at += 1 if kind == 0xFF else 2 + length
    except struct.error:
        pass
    return None


def _decoder(name: str, syntax: str) -> Any:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    try:
        decoder = get_decoder(UID(syntax))
    except NotImplementedError:
        raise InputError(
            f"{name}: transfer syntax {syntax} is not known; export the series uncompressed or as JPEG 2000"
        ) from None
    if not decoder.is_available:
        needed = "; or ".join(decoder.missing_dependencies)
        raise InputError(
            f"{name}: no decoder for {UID(syntax).name} is installed ({needed}); pip install 'trtseg[dicom]'"
        )
    return decoder
