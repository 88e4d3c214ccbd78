"""Liver and liver-tumour segmentation in CT, fast enough to run beside the scanner. Not for clinical use.

>>> import trtseg
>>> result = trtseg.segment("ct.nii.gz")        # doctest: +SKIP
>>> result.save("seg.nii.gz")                   # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtseg.api import Segmenter, segment
    from trtseg.engines.nvidia.build import build_engines
    from trtseg.errors import TrtsegError
    from trtseg.io import load
    from trtseg.labels.postprocess import PostProcess
    from trtseg.result import Segmentation
    from trtseg.volume import Volume

__version__ = "0.1.0"

# Names are imported on first use, so that `import trtseg` costs next to nothing.
_WHERE = {
    "PostProcess": "trtseg.labels.postprocess",
    "Segmentation": "trtseg.result",
    "Segmenter": "trtseg.api",
    "TrtsegError": "trtseg.errors",
    "Volume": "trtseg.volume",
    "build_engines": "trtseg.engines.nvidia.build",
    "load": "trtseg.io",
    "segment": "trtseg.api",
}

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


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trtseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
