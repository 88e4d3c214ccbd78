"""Liver and liver-tumour segmentation in CT, fast enough to run beside the scanner. Not for clinical use.

>>> import trtseg
>>> result = trtseg.segment("ct.nii.gz")        # doctest: +SKIP
>>> result.save("seg.nii.gz")                   # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtseg import cohort as cohort
    from trtseg import errors as errors
    from trtseg import fit as fit
    from trtseg import followup as followup
    from trtseg import io as io
    from trtseg import labels as labels
    from trtseg import metrics as metrics
    from trtseg import models as models
    from trtseg import pairs as pairs
    from trtseg import phantom as phantom
    from trtseg import report as report
    from trtseg import sample as sample
    from trtseg import stream as stream
    from trtseg import volume as volume
    from trtseg.api import Segmenter, segment
    from trtseg.engines.nvidia.build import build_engines
    from trtseg.errors import TrtsegError
    from trtseg.io import load
    from trtseg.labels.postprocess import PostProcess
    from trtseg.result import Segmentation
    from trtseg.volume import Volume

__version__ = "0.1.0"

# A public name is imported when it is first used, so that `import trtseg` costs next to nothing.
_NAMES = {
    "PostProcess": "trtseg.labels.postprocess",
    "Segmentation": "trtseg.result",
    "Segmenter": "trtseg.api",
    "TrtsegError": "trtseg.errors",
    "Volume": "trtseg.volume",
    "build_engines": "trtseg.engines.nvidia.build",
    "load": "trtseg.io",
    "segment": "trtseg.api",
}
# The modules that the documents name, as `trtseg.metrics.evaluate_case`, are imported in the same way.
_MODULES = (
    "cohort",
    "errors",
    "fit",
    "followup",
    "io",
    "labels",
    "metrics",
    "models",
    "pairs",
    "phantom",
    "report",
    "sample",
    "stream",
    "volume",
)

__all__ = [
    "PostProcess",
    "Segmentation",
    "Segmenter",
    "TrtsegError",
    "Volume",
    "__version__",
    "build_engines",
    "load",
    "segment",
]


if not TYPE_CHECKING:  # a type checker that sees it takes every name, misspelt ones too, for Any

    def __getattr__(name: str) -> Any:
        if name in _NAMES:
            return getattr(importlib.import_module(_NAMES[name]), name)
        if name in _MODULES:
            return importlib.import_module(f"trtseg.{name}")
        if name == "_core":
            _check_compiled()
        raise AttributeError(f"module 'trtseg' has no attribute {name!r}")


def _check_compiled() -> None:
    """Raise an ImportError where the extension is missing, as in a source tree that nobody has built."""
    import sys
    from importlib.util import find_spec
    from pathlib import Path

    if find_spec("trtseg._core") is None:
        raise ImportError(
            f"trtseg: {Path(__file__).parent} holds no extension _core compiled for Python "
            f"{sys.version_info.major}.{sys.version_info.minor}; if that is a source tree, start Python outside of it, "
            "or build the extension there: pip install -e .",
            name="trtseg._core",
        )


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
