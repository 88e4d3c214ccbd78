"""Grey slices and label maps as few bytes, without loss: pixels are predicted from neighbours, LZMA does the rest.

A pixel's prediction is the median of its left neighbour a, its upper neighbour b, and a + b - c with the upper left
neighbour c (Weinberger et al., *The LOCO-I lossless image compression algorithm*, 2000). Pixels of one anti-diagonal do
not depend on one another, so all slices of a chunk are decoded together, diagonal by diagonal.
"""

from __future__ import annotations

import lzma
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

#: Slices that are compressed together.
CHUNK = 64


def pack_images(images: np.ndarray) -> list[bytes]:
    """Compress uint8 images ``[N, S, S]``: a block of bytes for each `CHUNK` of them."""
    return _each(_pack_images, [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)])


def unpack_images(blocks: list[bytes], size: int) -> np.ndarray:
    """Undo `pack_images`: uint8 ``[N, size, size]``."""
    return np.concatenate(_each(lambda block: _unpack_images(block, size), blocks))


def pack_labels(labels: np.ndarray) -> list[bytes]:
    """Compress uint8 label maps ``[N, S, S]``: a block of bytes for each `CHUNK` of them."""
    chunks = [labels[i : i + CHUNK].tobytes() for i in range(0, len(labels), CHUNK)]
    return _each(lambda raw: lzma.compress(raw, preset=6), chunks)


def unpack_labels(blocks: list[bytes], size: int) -> np.ndarray:
    """Undo `pack_labels`: uint8 ``[N, size, size]``."""
    raw = b"".join(_each(lzma.decompress, blocks))
    return np.frombuffer(raw, np.uint8).reshape(-1, size, size)


def _each(function, items):
    """Apply a function to all items on all cores: LZMA and NumPy let other threads run meanwhile."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(function, items))


def _pack_images(images: np.ndarray) -> bytes:
    q = images.astype(np.int16)
    a, b, c = np.zeros_like(q), np.zeros_like(q), np.zeros_like(q)
    a[:, :, 1:], b[:, 1:], c[:, 1:, 1:] = q[:, :, :-1], q[:, :-1], q[:, :-1, :-1]
    residual = (q - _predicted(a, b, c)).astype(np.int8).astype(np.int16)  # modulo 256
    folded = np.where(residual >= 0, 2 * residual, -2 * residual - 1).astype(
        np.uint8
    )  # 0, -1, 1, -2, ... as 0, 1, ...
    return lzma.compress(folded.tobytes(), lzma.FORMAT_XZ, filters=_FILTERS)


def _unpack_images(block: bytes, size: int) -> np.ndarray:
    folded = np.frombuffer(lzma.decompress(block), np.uint8).reshape(-1, size * size).astype(np.int16)
    residual = np.where(folded % 2, -(folded + 1) // 2, folded // 2).T.copy()  # [pixel, slice]
    out = np.empty(residual.shape, np.uint8)
    # two diagonals back and one back, by row of the image; row 0 is the zeros above it
    before, last = (np.zeros((size + 1, folded.shape[0]), np.int16) for _ in range(2))
    for diagonal in range(2 * size - 1):
        rows = np.arange(max(0, diagonal - size + 1), min(size, diagonal + 1))
        pixels = rows * size + diagonal - rows
        own = slice(rows[0] + 1, rows[-1] + 2)
        above = slice(rows[0], rows[-1] + 1)
        value = (residual[pixels] + _predicted(last[own], last[above], before[above])) & 255
        out[pixels] = value
        before, last = last, np.zeros_like(last)
        last[own] = value
    return out.T.reshape(-1, size, size)


def _predicted(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The median of a, b and a + b - c."""
    low, high = np.minimum(a, b), np.maximum(a, b)
    return np.clip(a + b - c, low, high)


_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 4, "lp": 0, "pb": 0}]
