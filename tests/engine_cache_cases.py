"""What the tests of the cache of engines share: an engine that nobody runs, and how it gets into the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_models import key, sidecar

from trtseg.engines.nvidia import cache

ENGINE = bytes(range(256)) * 20
KEY = key()


def put(of, data: bytes) -> None:
    assert cache.obtain(of, lambda: (data, sidecar(of, data))) == (data, sidecar(of, data))


def load(of) -> bytes:
    """An engine that must be there."""
    return cache.obtain(of, never)[0]


def never():
    pytest.fail("there is an engine already")


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
