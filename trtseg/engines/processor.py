"""The processor: what it is, what it computes in hardware, and the precision that ``auto`` takes on it."""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path

from trtseg import _core
from trtseg.engines.precision import BF16, FP32, INT8, Precision, candidates
from trtseg.models import ModelFiles


@functools.cache
def read_cpuinfo() -> tuple[str, frozenset[str]]:
    """Name of the processor, and its features as Linux calls them; none where /proc/cpuinfo cannot be read."""
    name, features = platform.machine(), frozenset[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                return name, frozenset(value.split())
    return name, features


def native_bf16() -> bool:
    """Whether this processor multiplies BF16 in hardware, so that BF16 is faster than FP32."""
    return not read_cpuinfo()[1].isdisjoint({"avx512_bf16", "amx_bf16"})


def native_int8() -> bool:
    """Whether this processor sums products of INT8 in 32 bits at once, which is to make INT8 faster than FP32.

    That is VNNI of x86-64, with which it was measured, and dot products or products of matrices of 64-bit Arm, with
    which it was not.
    """
    native = {"avx512_vnni", "avx_vnni", "i8mm", "asimddp"}
    return not native.isdisjoint(_core.Net.int8_instructions())


def choose_precision(name: str, files: ModelFiles, role: str) -> Precision:
    """The precision that an option stands for, for a net of a model on this processor.

    ``auto`` is the first one that the model has a file for and that the processor has arithmetic for.
    """
    rows = candidates(name, "cpu")
    if len(rows) == 1:
        return rows[0]
    native = {INT8: native_int8(), BF16: native_bf16(), FP32: True}
    return next(row for row in rows if row.file(role) in files.spec.sha256 and native[row])
