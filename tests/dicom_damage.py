"""Ways to damage the bytes of a DICOM file at random."""

from __future__ import annotations

import io
import random

import pydicom
from pydicom.filewriter import write_dataset


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The file with bytes flipped, cut off, or an element removed, doubled or with another length."""
    way = rng.choice(["flip", "flip in the header", "cut", "remove", "double", "length"])
    if way == "cut":
        return data[: rng.randrange(len(data))]
    if way in ("flip", "flip in the header"):
        spoilt = bytearray(data)
        end = len(data) if way == "flip" else min(len(data), 1500)
        for _ in range(rng.choice([1, 3, 20])):
            spoilt[rng.randrange(end)] ^= rng.randrange(1, 256)
        return bytes(spoilt)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    elements = [*dataset.file_meta, *dataset]
    element = rng.choice(elements)
    encoded = _encoded(element, dataset)
    at = data.find(encoded[:-8] or encoded)
    if at < 0:
        return data[:132] + data[133:]
    if way == "remove":
        return data[:at] + data[at + len(encoded) :]
    if way == "double":
        return data[:at] + encoded + data[at:]
    spoilt = bytearray(data)
    spoilt[at + 4 : at + 8] = rng.randbytes(4)
    return bytes(spoilt)


def _encoded(element, dataset) -> bytes:
    alone = pydicom.Dataset()
    alone.add(element)
    buffer = pydicom.filebase.DicomBytesIO()
    is_meta = element.tag.group == 2
    buffer.is_implicit_VR, buffer.is_little_endian = (False, True) if is_meta else dataset.original_encoding
    write_dataset(buffer, alone)
    return buffer.getvalue()
