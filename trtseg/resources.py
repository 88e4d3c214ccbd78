"""Processors and memory that this process may use: of the machine, its cgroups and its limits."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtseg.errors import ArgumentError, OutOfMemoryError

_ROOT = Path("/")
# Words of runtimes, of the loader and of Python itself that could get no memory, or start no thread: for want of memory
# for its stack, or of a number.
_NO_MEMORY = (
    "alloc",
    "failed to map segment",
    "out of memory",
    "without exception set",
    "without setting an exc",
)
_NO_THREAD = ("resource temporarily unavailable", "can't start new thread")
_KINDS = (RuntimeError, ImportError, OSError, SystemError)
_PRODUCTS = 48 << 20  # bytes that OpenBLAS takes on one thread, and a little more
_STACKS = 64 << 20  # bytes; with more of them free, it is not memory that a thread lacks
_MOST_THREADS = 1024


def available_cpus(root: Path = _ROOT) -> int:
    """Count the processors that this process may use: its affinity, cut to the quota of its cgroups (v1 or v2).

    Parameters
    ----------
    root : Path
        Folder of ``proc`` and ``sys``.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups(root, "cpu"):
        quota = _words(folder / "cpu.max")
        quota = quota or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        with contextlib.suppress(ValueError, ZeroDivisionError):  # "max": no quota
            share, period = map(int, quota)
            if share > 0:
                cpus = min(cpus, math.ceil(share / period))
    return max(1, cpus)


def check_threads(threads: int | None) -> int | None:
    """Return a number of threads, None for as many as there are processors; an ArgumentError if it is none."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
        raise ArgumentError(f"threads: got {threads!r}; expected a whole number from 1 to {_MOST_THREADS}")
    return threads


def free_memory(root: Path = _ROOT) -> int | None:
    """Bytes that this process may still take: what the machine, its cgroups and ``ulimit`` leave; None if unknown.

    Parameters
    ----------
    root : Path
        Folder of ``proc`` and ``sys``.
    """
    machine, process = _table(root / "proc/meminfo"), _table(root / "proc/self/status")
    left = (
        [(machine["MemAvailable"] + machine.get("SwapFree", 0)) * 1024] if "MemAvailable" in machine else []
    )
    for folder in _cgroups(root, "memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", ("inactive_file", "active_file")),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
        ):
            with contextlib.suppress(ValueError):  # "max", or no such file
                (most,), (now,) = map(int, _words(folder / limit)), map(int, _words(folder / used))
                statistics = _table(folder / "memory.stat")
                left.append(most - now + sum(statistics.get(key, 0) for key in cache))
    with contextlib.suppress(ImportError):
        import resource

        for which, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            allowed, _ = resource.getrlimit(which)
            if allowed != resource.RLIM_INFINITY and taken in process:
                left.append(allowed - process[taken] * 1024)
    return max(0, min(left)) if left else None


def check_memory(what: str, needed: int) -> None:
    """Raise an OutOfMemoryError that begins with ``what`` if fewer than ``needed`` bytes of memory are free."""
    free = free_memory()
    if free is not None and free < needed:
        raise OutOfMemoryError(_sentence(what, needed, free))


@contextmanager
def memory_for(what: str, needed: int) -> Iterator[None]:
    """Check the memory before the body, and make an OutOfMemoryError of a lack of memory in the body.

    Parameters
    ----------
    what : str
        The input or the part that needs the memory, for the message.
    needed : int
        Bytes that the body takes at most.

    Raises
    ------
    OutOfMemoryError
        If the memory does not suffice.
    """
    check_memory(what, needed)
    try:
        yield
    except (MemoryError, *_KINDS) as error:
        if not is_lack_of_memory(error):
            raise
        try:
            free = free_memory()
        except MemoryError:  # not even for that
            free = 0
        if _says(error, _NO_THREAD) and (free is None or free > _STACKS):
            raise OutOfMemoryError(
                f"{what}: no thread can be started; raise the limit of processes (ulimit -u, a container's pids)"
            ) from error
        raise OutOfMemoryError(_sentence(what, needed, free)) from error


@functools.cache
def begin_products() -> None:
    """Let OpenBLAS take its memory now: it does so when it first needs some, and ends the process where there is none.

    Products of small matrices need none on some processors; determinants do on all.
    """
    import numpy as np  # costs nothing to those who need no product

    with memory_for("trtseg", _PRODUCTS):
        np.linalg.det(np.eye(3))
        np.ones((64, 64)) @ np.ones((64, 64))


def is_lack_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that there was no memory; runtimes in C++ have no class for that."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return _says(error, (*_NO_MEMORY, *_NO_THREAD))


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    """Look for words in what an error says, but not in the paths that it names."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = re.sub(r"\S*/\S*", "", str(error)) if isinstance(error, _KINDS) else ""
    return any(word in text.lower() for word in words)


def _sentence(what: str, needed: int, free: int | None) -> str:
    if free is not None and free >= needed:
        said = f"needs more than the {_size(free)} of memory that are free"
    else:
        found = "" if free is None else f", and {_size(free)} are free"
        said = f"needs about {_size(needed)} of memory{found}"
    return (
        f"{what}: {said}; close other programs, raise a limit (ulimit, container), or take a larger machine"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups of this process, from its own up to the root, where their limits lie."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = ["", "unified"]
        elif controller in controllers.split(","):
            mounts = [controllers, controller]
        else:
            continue
        for mount in dict.fromkeys(mounts):
            top = root / "sys/fs/cgroup" / mount
            own = top / path.strip("/")  # not there in a container that sees its own group as the root
            yield from (own, *(parent for parent in own.parents if parent.is_relative_to(top)))


def _table(path: Path) -> dict[str, int]:
    """Numbers of a file with a name and a number a line."""
    rows = (line.replace(":", " ").split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _words(path: Path) -> list[str]:
    return _read(path).split()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
