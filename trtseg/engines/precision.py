"""The precisions: the one table of what an engine may compute in, from the ONNX file to the acceptance gate.

A new precision is a new row here, its ONNX file in the model's folder, and for the CPU a line in
`trtseg.engines.processor.choose_precision`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError


@dataclass(frozen=True)
class Precision:
    """One row of the table.

    Attributes
    ----------
    name : str
        Name in options, reports and keys.
    ending : str
        The ONNX file of a net is ``<role><ending>``.
    dtype : numpy.dtype
        Element type of the engine's input and logits.
    logit_bound : float
        The acceptance gate allows another label only where the reference's logit is closer than this to the threshold,
        and the root mean square of all differences must be smaller, too.
    devices : tuple of str
        Kinds of device that run it: ``cpu``, ``cuda``.
    openvino : str
        Element type in which OpenVINO computes what the ONNX file leaves open; empty where no CPU runs it.
    """

    name: str
    ending: str
    dtype: np.dtype[Any]
    logit_bound: float
    devices: tuple[str, ...]
    openvino: str = ""

    def file(self, role: str) -> str:
        """Name of the ONNX file of a net."""
        return f"{role}{self.ending}"


_HALF, _SINGLE = np.dtype(np.float16), np.dtype(np.float32)

# The bounds: 0.2 is a probability of 0.55, 0.5 of 0.62. Emulated FP16 and BF16 of the shipped nets flip labels below a
# quarter of theirs, but for the liver net in BF16, which comes to three quarters (tests/test_acceptance_bounds.py). The
# labels of INT8 are compared with those of FP32 before its files become part of a model (training/int8.py). In FP32
# only the order of sums may differ, and TF32 is refused.
FP16 = Precision("fp16", ".fp16.onnx", _HALF, 0.2, ("cuda",))
BF16 = Precision("bf16", ".onnx", _SINGLE, 0.5, ("cpu",), openvino="bf16")
INT8 = Precision("int8", ".int8.onnx", _SINGLE, 1.0, ("cpu",), openvino="f32")
FP32 = Precision("fp32", ".onnx", _SINGLE, 0.005, ("cpu", "cuda"), openvino="f32")

#: The table, fastest first.
PRECISIONS = (FP16, INT8, BF16, FP32)


def candidates(name: str, device: str) -> tuple[Precision, ...]:
    """The precisions that an option stands for, to be tried in this order: several for ``auto``, else one.

    Parameters
    ----------
    name : str
        ``auto``, or a precision.
    device : str
        ``cpu`` or ``cuda``.

    Raises
    ------
    ArgumentError
        There is no such precision on this kind of device.
    """
    rows = [row for row in PRECISIONS if device in row.devices]
    found = tuple(row for row in rows if name in ("auto", row.name))
    if not found:
        *names, last = [repr("auto"), *(repr(row.name) for row in rows)]
        where = "a GPU" if device == "cuda" else "the CPU"
        raise ArgumentError(f"precision: got {name!r}; on {where} it is {', '.join(names)} or {last}")
    return found


def named(name: str) -> Precision:
    """The row of that name, for names that trtseg wrote itself; a KeyError if there is none."""
    return {row.name: row for row in PRECISIONS}[name]
