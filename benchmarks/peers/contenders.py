"""Who is compared: names, programs, options, and on which processors each belongs into the table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtseg.errors import ArgumentError


@dataclass(frozen=True)
class Contender:
    """A program of `benchmarks.peers` with options.

    Attributes
    ----------
    name, title : str
        What ``--only`` calls it; what the table calls it.
    group : str
        Letter of the peer in the goals; ``trtseg``.
    program, options : str, tuple of str
        Module of `benchmarks.peers`, and its options.
    needs : str
        ``bf16`` or ``int8``: arithmetic without which the contender is left out unless it is named.
    differs : str
        Why its labels are not those of trtseg, by design.
    first_only : bool
        Whether it is so slow that it runs on the first CT only, unless it is named.
    """

    name: str
    title: str
    group: str
    program: str
    options: tuple[str, ...] = ()
    needs: str = ""
    differs: str = ""
    first_only: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is trtseg."""
        return self.group == "trtseg"

    def command(self, python: Path, model: Path, threads: int) -> list[str]:
        """Its command line."""
        return [
            *(str(python), "-m", f"benchmarks.peers.{self.program}"),
            *("--model", str(model), "--threads", str(threads), *self.options),
        ]


def _ours(precision: str, needs: str) -> Contender:
    return Contender(
        f"trtseg-{precision}",
        f"trtseg {precision.upper()}",
        "trtseg",
        "trtseg_files",
        ("--precision", precision),
        needs,
    )


_LAST = ("--channels-last",)
_BF16 = (*_LAST, "--precision", "bf16")

CONTENDERS = (
    _ours("fp32", ""),
    _ours("bf16", "bf16"),
    _ours("int8", "int8"),
    Contender("torch", "PyTorch eager FP32", "a", "student"),
    Contender("torch-last", "PyTorch channels-last FP32", "b", "student", _LAST),
    Contender(
        "torch-last-compiled", "PyTorch channels-last FP32, compiled", "b", "student", (*_LAST, "--compile")
    ),
    Contender("torch-bf16", "PyTorch channels-last BF16", "b", "student", _BF16, "bf16"),
    Contender(
        "torch-bf16-compiled",
        "PyTorch channels-last BF16, compiled",
        "b",
        "student",
        (*_BF16, "--compile"),
        "bf16",
    ),
    Contender("onnxruntime", "ONNX Runtime FP32", "c", "onnx_runtime"),
    Contender("onnxruntime-int8", "ONNX Runtime INT8", "c", "onnx_runtime", ("--precision", "int8")),
    Contender("nnunet", "nnU-Net v2, both nets", "d", "nnunet"),
    Contender(
        "nnunet-planned",
        "nnU-Net v2, one net as planned",
        "d",
        "nnunet",
        ("--net", "planned"),
        differs="another net",
    ),
    Contender(
        "nnunet-mirroring",
        "nnU-Net v2, both nets, mirroring",
        "d",
        "nnunet",
        ("--mirroring",),
        differs="nets not trained for it",
        first_only=True,
    ),
    Contender("monai", "MONAI SliceInferer", "e", "monai_slices"),
)
#: trtseg without post-processing, with whose labels all others are compared.
REFERENCE = Contender("reference", "", "trtseg", "trtseg_files", ("--precision", "fp32", "--raw"))


def chosen(only: list[str], native: set[str]) -> list[Contender]:
    """Those that are named; without names, all that this processor has arithmetic for."""
    known = {contender.name for contender in CONTENDERS}
    if unknown := set(only) - known:
        raise ArgumentError(
            f"--only: got {', '.join(sorted(unknown))}; expected some of {', '.join(sorted(known))}"
        )
    if only:
        return [contender for contender in CONTENDERS if contender.name in only]
    return [contender for contender in CONTENDERS if not contender.needs or contender.needs in native]
