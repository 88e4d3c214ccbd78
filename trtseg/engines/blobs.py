"""Bytes that save work next time (compiled nets and kernels, timings), kept in this user's cache and checked when read.

They lie in the folder of engines, under the rules of `trtseg.engines.trust`. They can be deleted at any time.
"""

from __future__ import annotations

import hashlib

from trtseg.engines.trust import engine_folder, prepared, read
from trtseg.errors import ModelError
from trtseg.io.atomic import atomic

_DIGEST = hashlib.sha256().digest_size


def load_blob(name: str) -> bytes | None:
    """Read the bytes that `store_blob` kept; None if they are missing, damaged, or not this user's alone."""
    path = engine_folder() / f"{name}.blob"
    try:
        content = read(path, own=True)
    except ModelError:
        return None
    data = content[_DIGEST:]
    return data if hashlib.sha256(data).digest() == content[:_DIGEST] else None


def store_blob(name: str, data: bytes) -> None:
    """Keep bytes under a name, all of them or none; OutputError or ModelError if the cache cannot be used."""
    with prepared(), atomic(engine_folder() / f"{name}.blob") as (part,):
        part.write_bytes(hashlib.sha256(data).digest() + data)
        part.chmod(part.stat().st_mode & 0o755)
