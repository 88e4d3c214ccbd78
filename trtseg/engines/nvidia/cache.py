"""Engines on disk: found by key, built once, and loaded only if this user's own trtseg built them.

A serialised engine can run any code. `trtseg.engines.trust` decides which files may be read. This module
compares the SHA-256 with the sidecar's and the sidecar with the key, and hands on the bytes that were hashed, never a
path. An engine from elsewhere is refused unless the user names and allows it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trtseg.engines.nvidia.sidecar import EngineKey, Sidecar, sidecar_path
from trtseg.engines.trust import engine_folder, is_own, locked, opened, read
from trtseg.errors import ModelError, OutputError
from trtseg.io.atomic import atomic

log = logging.getLogger("trtseg")

# Names of all files that trtseg writes here, also `atomic`'s hidden names, which a killed process leaves.
_OURS = re.compile(r"(\.[0-9a-f]{16}-)?[^.].*\.(engine|engine\.json|blob)")


class Built(NamedTuple):
    """An engine file without a fault, and its sidecar."""

    path: Path
    sidecar: Sidecar


@dataclass(frozen=True)
class Entry:
    """An engine file, its sidecar, and the fault that was found in either (None: no fault)."""

    path: Path
    sidecar: Sidecar | None
    problem: str | None


def load_file(path: str | os.PathLike[str], *, allow_foreign: bool = False) -> tuple[bytes, Sidecar]:
    """Read an engine by its path: bytes whose SHA-256 is the one in the sidecar, and the sidecar.

    Parameters
    ----------
    path : path
        The ``.engine`` file, with its sidecar beside it.
    allow_foreign : bool
        Take it from outside this user's cache too, whoever it belongs to. An engine can run any code: allow only
        engines that you would run as a program.

    Raises
    ------
    ModelError
        The engine is refused, or fails a check.
    """
    path = Path(path)
    own = is_own(path.parent)
    if not own and not allow_foreign:
        raise ModelError(
            f"{path}: refused, since an engine file can run any code and this one is not from your own cache; "
            "build it here, or allow foreign engines explicitly (--allow-foreign) if you trust where it is from"
        )
    return _read_pair(path, own=own)


def adopt(folder: Path, *, allow_foreign: bool = False) -> list[Built]:
    """Copy the engines of a folder into this user's cache, where they are found by key, all of them or none.

    Their hashes are checked first. Their acceptance is dropped: this machine checks them anew.

    Parameters
    ----------
    folder : Path
        Folder of ``.engine`` files and their sidecars, as `trtseg.build_engines` writes them.
    allow_foreign : bool
        Must be true; see `load_file`.

    Returns
    -------
    list of Built
        The engines in the cache.

    Raises
    ------
    ModelError
        Foreign engines were not allowed, there is none, or one of them fails a check.
    """
    if is_own(folder):
        raise ModelError(f"{folder}: is your own cache; name a folder that 'trtseg build -o' wrote")
    pairs = [load_file(entry.path, allow_foreign=allow_foreign) for entry in entries(folder)]
    if not pairs:
        raise ModelError(f"{folder}: holds no engines; expected what 'trtseg build -o' wrote")
    adopted = {}
    for data, sidecar in pairs:
        unchecked = dataclasses.replace(sidecar, acceptance=None)
        adopted[engine_folder() / sidecar.key.file_name] = data, unchecked
    with locked(), atomic(*(file for path in adopted for file in (path, sidecar_path(path)))) as parts:
        for number, (data, sidecar) in enumerate(adopted.values()):
            write(parts[2 * number : 2 * number + 2], data, sidecar)
    return [Built(path, sidecar) for path, (_, sidecar) in adopted.items()]


def obtain(
    key: EngineKey,
    build: Callable[[], tuple[bytes, Sidecar]],
    *,
    others: Sequence[EngineKey] = (),
    waiting: Callable[[], None] | None = None,
) -> tuple[bytes, Sidecar]:
    """Return the engine of that key from this user's cache; it is built first where it is missing or fails a check.

    Of several processes that want the same engine one builds it, and the others wait.

    Parameters
    ----------
    key : EngineKey
        Key of the engine.
    build : callable
        Makes the engine and its sidecar; not called if the cache has a good one.
    others : sequence of EngineKey
        Keys of engines that will do where the cache has none of ``key``.
    waiting : callable, optional
        Called before waiting for another process.
    """
    for wanted in (key, *others):
        try:
            return _load(wanted)
        except ModelError:
            pass  # another process may be building it: the lock tells
    with locked(waiting):
        path = engine_folder() / key.file_name
        try:
            return _load(key)
        except ModelError as error:
            if path.exists():
                log.warning("%s (it is built again now)", error)
        data, sidecar = build()
        with atomic(path, sidecar_path(path)) as parts:
            write(parts, data, sidecar)
        return data, sidecar


def find(key: EngineKey) -> tuple[bytes, Sidecar] | None:
    """Return the engine of that key from this user's cache; None if it is missing or fails a check."""
    try:
        return _load(key)
    except ModelError as error:
        if (engine_folder() / key.file_name).exists():
            log.warning("%s", error)
        return None


def write(parts: tuple[Path, ...], data: bytes, sidecar: Sidecar) -> None:
    """Write an engine and its sidecar into two new files that only this user may write."""
    for part, content in zip(parts, (data, sidecar.to_json().encode()), strict=True):
        part.write_bytes(content)
        part.chmod(part.stat().st_mode & 0o755)


def keep_acceptance(key: EngineKey, acceptance: dict[str, Any], *, sha256: str) -> Sidecar:
    """Write the acceptance of an engine in this user's cache into its sidecar, all or nothing; return the new sidecar.

    Parameters
    ----------
    key : EngineKey
        Key of the engine.
    acceptance : dict
        As `trtseg.engines.acceptance.Acceptance.to_json` makes it.
    sha256 : str
        SHA-256 of the engine that was checked: a ModelError if another engine is in the cache by now.
    """
    path = engine_folder() / key.file_name
    with locked():
        _, sidecar = _read_pair(path, own=True)
        if sidecar.sha256 != sha256:
            raise ModelError(f"{path}: is another engine than the one that was checked; check this one")
        checked = dataclasses.replace(sidecar, acceptance=acceptance)
        text = checked.to_json()
        with atomic(sidecar_path(path)) as (part,):
            part.write_text(text, encoding="utf-8")
            part.chmod(part.stat().st_mode & 0o755)
    return checked


def entries(folder: Path | None = None, *, verify: bool = False) -> list[Entry]:
    """List the engines in a folder, by default this user's cache, by name.

    With ``verify`` every check of loading is made; without it only the sidecars are read. The entry of an engine holds
    its fault; a ModelError says why the folder cannot be read.
    """
    chosen = engine_folder() if folder is None else folder
    own = is_own(chosen)
    if own and not chosen.exists():
        return []
    with opened(chosen, own=own):
        names = {path.name.removesuffix(".json") for path in chosen.iterdir() if _OURS.fullmatch(path.name)}
    found = []
    for path in (chosen / name for name in sorted(names) if name.endswith(".engine") and name[0] != "."):
        try:
            sidecar = _read_pair(path, own=own)[1] if verify else _read_sidecar(path, own=own)
            found.append(Entry(path, sidecar, None if path.exists() else f"{path}: the engine is missing"))
        except ModelError as error:
            found.append(Entry(path, None, str(error)))
    return found


def clear(folder: Path | None = None) -> tuple[int, int]:
    """Delete engines and the files that belong to them; return the number of files and of bytes.

    From this user's cache all of trtseg's files go; from another folder only engines that have a sidecar.
    """
    chosen = engine_folder() if folder is None else folder
    own = is_own(chosen)
    if own and not chosen.exists():
        return 0, 0
    with locked() if own else nullcontext(), opened(chosen, own=own):
        names = {path.name for path in chosen.iterdir()}
        pairs = [(name, f"{name}.json") for name in names if name.endswith(".engine")]
        doomed = {name for pair in pairs if pair[1] in names for name in pair}
        if own:
            doomed = {name for name in names if _OURS.fullmatch(name)}
        size = 0
        for path in (chosen / name for name in sorted(doomed)):
            try:
                size += path.lstat().st_size
                path.unlink()
            except OSError as error:
                raise OutputError(f"{path}: cannot be deleted ({error.strerror})") from error
    return len(doomed), size


def _load(key: EngineKey) -> tuple[bytes, Sidecar]:
    path = engine_folder() / key.file_name
    data, sidecar = _read_pair(path, own=True)
    if sidecar.key != key:
        raise ModelError(f"{path}: its sidecar is of another engine ({sidecar.key}); delete both")
    return data, sidecar


def _read_pair(path: Path, *, own: bool) -> tuple[bytes, Sidecar]:
    sidecar, data = _read_sidecar(path, own=own), read(path, own=own)
    got = hashlib.sha256(data).hexdigest()
    if got != sidecar.sha256:
        raise ModelError(
            f"{path}: its SHA-256 is {got}, but its sidecar says {sidecar.sha256}; it was changed or is damaged: "
            "build it again"
        )
    return data, sidecar


def _read_sidecar(path: Path, *, own: bool) -> Sidecar:
    beside = sidecar_path(path)
    content = read(beside, own=own)
    try:
        sidecar = Sidecar.from_json(content)
    except ModelError as error:
        raise ModelError(f"{beside}: {error}; build the engine again") from error
    if own and sidecar.key.file_name != path.name:
        raise ModelError(f"{beside}: is the sidecar of {sidecar.key.file_name}; build the engine again")
    return sidecar
