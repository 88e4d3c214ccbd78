"""How well a segmentation agrees with the truth: `evaluate_case` for one case, `evaluate_set` for a set of cases.

Each family of metrics has a module: `overlap` counts voxels, `surface` measures millimetres between surfaces,
`detection` asks which lesions were found, and `ranking` looks at probabilities before any threshold. `cases` puts the
first three together. Each module says which convention its numbers follow: metrics of the same name differ between
tools. An undefined metric is NaN, never a number that stands for it.

Surfaces need SciPy and ranking needs scikit-learn: ``pip install "trtseg[evaluate]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtseg.metrics.cases import CaseScores, SetScores, evaluate_case, evaluate_set

__all__ = ["CaseScores", "SetScores", "evaluate_case", "evaluate_set"]


if not TYPE_CHECKING:  # a type checker that sees it takes every name, misspelt ones too, for Any

    def __getattr__(name: str) -> Any:  # on first use: a module that needs one metric imports no others
        if name not in __all__:
            raise AttributeError(f"module 'trtseg.metrics' has no attribute {name!r}")
        from trtseg.metrics import cases

        return getattr(cases, name)
