"""Segment a CT: `segment` for one, `Segmenter` for many."""

from __future__ import annotations

import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtseg import __version__, models
from trtseg.cascade import Cascade
from trtseg.engines import open_engine, resolve_device
from trtseg.io import load
from trtseg.postprocess import PostProcess, postprocess
from trtseg.result import Segmentation
from trtseg.spec import CascadeSpec


class Segmenter:
    """A model that is loaded once and segments many CTs.

    Safe to use from several threads: reading and post-processing run side by side, the nets (which use all cores) take
    one CT after the other.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or a folder as ``training.export`` writes it.
    device : str
        ``auto`` or ``cpu``; a device that was named and does not work is an error, never replaced.
    precision : str
        ``fp32``, ``bf16``, or ``auto``: BF16 where the processor has it.
    postprocess : PostProcess
        Which steps follow the nets.

    Raises
    ------
    ModelError, DeviceError, ArgumentError
        The model is unknown or damaged, the device is not there, an argument is wrong.

    Examples
    --------
    >>> segmenter = trtseg.Segmenter()                     # doctest: +SKIP
    >>> for path in paths:                                 # doctest: +SKIP
    ...     segmenter.segment(path).save(path.with_name("seg_" + path.name))
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        device: str = "auto",
        precision: str = "auto",
        postprocess: PostProcess | None = None,
    ) -> None:
        self.device = resolve_device(device)
        files = models.find(model)
        self.spec: CascadeSpec = files.spec
        engines = [
            open_engine(files.read(net.role), net, device=self.device, precision=precision)
            for net in self.spec.nets
        ]
        self.precision = engines[0].precision
        self.postprocess = PostProcess() if postprocess is None else postprocess
        self._cascade = Cascade(*engines)
        self._lock = threading.Lock()
        self._provenance = _provenance(self.spec, self.device, self.precision)

    def segment(
        self,
        source: Any,
        *,
        affine: Any = None,
        spacing: Any = None,
        progress: Callable[[float], None] | None = None,
    ) -> Segmentation:
        """Segment one CT.

        Parameters
        ----------
        source : path, nibabel image, numpy.ndarray or Volume
            The CT, in Hounsfield units.
        affine : array_like [4, 4], optional
            For an array in index order ``[i, j, k]``: index to RAS millimetres, as nibabel has it.
        spacing : (float, float, float), optional
            For an array in canonical order ``[Z, Y, X]`` (feet to head, front to back, the patient's right to left):
            millimetres between neighbours along each axis.
        progress : callable, optional
            Is told the fraction that is done, from 0 to 1.

        Returns
        -------
        Segmentation
            Labels on the source's own grid, with measurements, timings and provenance.

        Raises
        ------
        InputError
            The source cannot be read, or is not a CT that can be segmented.
        ArgumentError
            An argument is wrong.
        """
        start = time.perf_counter()
        volume = load(source, affine=affine, spacing=spacing)
        read = time.perf_counter() - start
        with self._lock:
            labels, stages = self._cascade.run(volume, progress)
        start = time.perf_counter()
        steps = postprocess(labels, volume.voxel_ml, self.postprocess)
        stages["postprocess"] = time.perf_counter() - start
        return Segmentation.measure(
            labels, volume, steps=steps, timings={"read": read, **stages}, provenance=self._provenance
        )


def _provenance(spec: CascadeSpec, device: str, precision: str) -> dict[str, Any]:
    """What makes a result, so that it can be made again."""
    return {
        "model": spec.name,
        "model_version": spec.version,
        "sha256": {name: spec.sha256[name] for name in (f"{net.role}.onnx" for net in spec.nets)},
        "thresholds": {net.role: net.threshold for net in spec.nets},
        "device": device,
        "precision": precision,
        "versions": {
            "trtseg": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "openvino")},
        },
        "intended_use": spec.nets[0].intended_use,
    }


def segment(
    source: Any,
    *,
    model: str | Path = "default",
    device: str = "auto",
    precision: str = "auto",
    affine: Any = None,
    spacing: Any = None,
    postprocess: PostProcess | None = None,
    progress: Callable[[float], None] | None = None,
) -> Segmentation:
    """Segment one CT; `Segmenter` loads the model once for many.

    See `Segmenter` for ``model``, ``device``, ``precision`` and ``postprocess``, and `Segmenter.segment` for the rest.

    Examples
    --------
    >>> result = trtseg.segment("ct.nii.gz")               # doctest: +SKIP
    >>> result.liver_ml, result.tumour_ml, result.save("seg.nii.gz")  # doctest: +SKIP
    """
    segmenter = Segmenter(model, device=device, precision=precision, postprocess=postprocess)
    return segmenter.segment(source, affine=affine, spacing=spacing, progress=progress)
