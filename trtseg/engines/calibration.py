"""Slices to accept and calibrate engines with: where they come from, and how the FP32 reference answers them.

They belong to the model: ``training.export`` stores some of its training patients' slices in the model's folder. Of a
model without such slices the nets are shown the phantom.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from trtseg import _core
from trtseg.engines.base import Engine, Net, logits_of
from trtseg.engines.precision import FP32
from trtseg.errors import DeviceError, ModelError
from trtseg.models import ModelFiles
from trtseg.phantom import abdomen
from trtseg.spec import ModelSpec

Array = npt.NDArray[Any]

#: Computes the logits float32 ``[k, channels, H, W]`` of a net for its input float32 ``[k, 1, H, W]``.
RunNet = Callable[[ModelSpec, Array], Array]

#: File of the slices in a model's folder.
FILE = "calibration.npz"

#: Beyond this distance from the threshold all logits count as equal: it is a probability of 0.9997.
SETTLED = 8.0

# Stored logits are whole numbers of these steps.
_STEPS = 256

_SEED, _SLICES, _SLICE_MM = 2, 8, 26.0  # of the phantom: from below the liver to well above it
_FIELD_MM = (320.0, 400.0)


@dataclass(frozen=True)
class Slices:
    """CT slices of one size.

    Attributes
    ----------
    hu : int16 [k, Y, X]
        Hounsfield units.
    spacing : (float, float)
        Millimetres between rows and between columns.
    about : str
        Origin and licence, in sentences.
    logits : dict
        Role of a net to the FP32 reference's logits float32 ``[k, channels, H, W]``, where they are stored.
    """

    hu: Array
    spacing: tuple[float, float]
    about: str
    logits: dict[str, Array]


@dataclass(frozen=True)
class Reference:
    """What an engine of one net is compared with.

    Attributes
    ----------
    images, logits : float32 [k, 1, H, W] and [k, channels, H, W]
        Input of the net, and its logits in FP32.
    source : str
        What computed the logits.
    files : dict
        Name and SHA-256 of each file of the model on which images and logits depend.
    counts : bool [k, H, W], optional
        Pixels on whose logits labels depend: of a tumour net those that the liver net calls liver. By default all.
    """

    images: Array
    logits: Array
    source: str
    files: dict[str, str]
    counts: Array | None = None


def show(
    hu: Array, spacing: tuple[float, float], nets: Sequence[ModelSpec], run: RunNet
) -> dict[str, tuple[Array, Array]]:
    """Show slices to the nets of a model, as the cascade does: `prepare`, and for the tumour net `gate`.

    Parameters
    ----------
    hu : int16 [k, Y, X]
        Hounsfield units.
    spacing : (float, float)
        Millimetres between rows and between columns.
    nets : sequence of ModelSpec
        ``(liver, tumour)``, or one ``one-step`` net.
    run : callable
        Runs a net; see `RunNet`.

    Returns
    -------
    dict
        Role of each net to its input ``[k, 1, H, W]`` and its logits ``[k, channels, H, W]``, both float32.
    """
    first = nets[0]
    fit = first.fit_volume(hu, spacing)
    hu_net, images = (
        np.empty((len(hu), *first.size), np.int16),
        np.empty((len(hu), 1, *first.size), np.float32),
    )
    _core.prepare(np.ascontiguousarray(hu), fit, first.window, hu_net, images)
    shown = {first.role: (images, run(first, images))}
    for spec in nets[1:]:
        masked, pixels = np.empty_like(images), np.empty(len(hu), np.int32)
        _core.gate(shown[first.role][1], hu_net, first.logit_threshold, spec.window, masked, pixels)
        shown[spec.role] = masked, run(spec, masked)
    return shown


def references(files: ModelFiles) -> dict[str, Reference]:
    """For each role of a model: the slices as the net sees them, and the FP32 reference's logits.

    OpenVINO computes the logits, or ONNX Runtime where that is not installed. Where neither is installed, the logits
    that the export stored take their place.

    Raises
    ------
    ModelError
        A net cannot be read or run, or gives NaN or infinity in FP32.
    DeviceError
        Neither of them is installed, and the model stores no logits.
    """
    slices, nets, are_stored = read_slices(files), files.spec.nets, False
    try:
        engines = {spec.role: open_reference(files, spec) for spec in nets}
    except DeviceError:
        if not slices.logits:
            raise
        shown = show(slices.hu, slices.spacing, nets, lambda spec, _: slices.logits[spec.role])
        source, are_stored = f"the logits in {FILE}", True
    else:
        shown = show(slices.hu, slices.spacing, nets, lambda spec, x: logits_of(engines[spec.role], x))
        package = _reference_package()
        source = f"{package} {importlib.metadata.version(package)} {FP32.name}"
    for role, (_, logits) in shown.items():
        if not np.isfinite(logits).all():
            raise ModelError(
                f"{role} net: gives NaN or infinity in FP32 on the calibration slices, so no engine can be compared "
                "with it; train or export the model again"
            )
    used = reference_files(files)
    found = {role: Reference(images, logits, source, used) for role, (images, logits) in shown.items()}
    first, *others = nets
    for spec in others:
        counts = shown[first.role][1][:, 0] > first.logit_threshold
        if are_stored:  # which leaves some of them out
            counts &= shown[spec.role][0][:, 0] > 0
        found[spec.role] = dataclasses.replace(found[spec.role], counts=counts)
    return found


def reference_files(files: ModelFiles) -> dict[str, str]:
    """Name and SHA-256 of the files of a model on which its `references` depend: slices, and all nets in FP32."""
    names = {FILE, *(FP32.file(spec.role) for spec in files.spec.nets)}
    return {name: sha256 for name, sha256 in files.spec.sha256.items() if name in names}


def open_reference(files: ModelFiles, spec: ModelSpec) -> Engine:
    """Open the FP32 engine with which others are compared: OpenVINO or, without it, ONNX Runtime.

    Raises
    ------
    ModelError
        The net cannot be run, or is not what ``spec`` says.
    DeviceError
        Neither is installed.
    """
    from trtseg.engines.onnxruntime import OnnxRuntimeEngine
    from trtseg.engines.openvino import OpenVinoEngine

    engine = OnnxRuntimeEngine if _reference_package() == "onnxruntime" else OpenVinoEngine
    return engine(Net.read(files, spec, FP32))


def _reference_package() -> str:
    return "onnxruntime" if find_spec("openvino") is None and find_spec("onnxruntime") else "openvino"


def read_slices(files: ModelFiles) -> Slices:
    """Read the slices in a model's folder, or draw the phantom for a model that has none.

    Raises
    ------
    ModelError
        The file of slices was changed, or cannot be read.
    """
    if FILE not in files.spec.sha256:
        return _phantom(files.spec.nets[0])
    try:
        with np.load(io.BytesIO(files.read(FILE))) as stored:
            logits = {spec.role: stored[f"logits_{spec.role}"] for spec in files.spec.nets}
            return Slices(
                hu=stored["hu"],
                spacing=(float(stored["spacing"][0]), float(stored["spacing"][1])),
                about=str(stored["about"]),
                logits={spec.role: _unpacked(logits[spec.role], spec) for spec in files.spec.nets},
            )
    except (ValueError, KeyError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{files.folder / FILE}: cannot be read ({error}); export or install the model again"
        ) from error


def pack_slices(
    hu: Array, spacing: tuple[float, float], nets: Sequence[ModelSpec], run: RunNet, about: str
) -> bytes:
    """Make the file of slices, with the logits of ``run``; `read_slices` reads it, `show` explains the parameters.

    To keep the file small, the logits are rounded to 1/256, those further than `SETTLED` from the threshold are
    brought to that distance, and those of a tumour net where its input is 0 are left out, so they do not count where
    the stored ones are the reference. No other label changes by that.
    """
    shown = show(hu, spacing, nets, run)
    logits = {f"logits_{spec.role}": _packed(*shown[spec.role], spec) for spec in nets}
    file = io.BytesIO()
    np.savez_compressed(file, hu=hu, spacing=np.array(spacing), about=np.array(about), **logits)  # type: ignore[arg-type]
    return file.getvalue()


def _packed(images: Array, logits: Array, spec: ModelSpec) -> Array:
    if spec.role == "one-step":
        steps = np.rint(logits * _STEPS).clip(-32767, 32767)
    else:
        most = SETTLED * _STEPS + 1  # beyond it, however the sum with the threshold is rounded
        margin = (logits - np.float32(spec.logit_threshold)) * _STEPS
        # rounding must not take a logit over the threshold
        steps = np.where(margin > 0, np.rint(margin).clip(1, most), np.rint(margin).clip(-most, 0))
    if spec.role == "tumour":
        steps[images == 0] = -most
    packed: Array = steps.astype(np.int16)
    return packed


def _unpacked(steps: Array, spec: ModelSpec) -> Array:
    offset = 0.0 if spec.role == "one-step" else spec.logit_threshold
    logits: Array = steps.astype(np.float32) / np.float32(_STEPS) + np.float32(offset)
    return logits


def _phantom(spec: ModelSpec) -> Slices:
    """Draw slices of the phantom for a net: with liver and lesions, with liver only, and without."""
    shape, mm = spec.size, max(f / n for f, n in zip(_FIELD_MM, spec.size, strict=True))
    if spec.fit == "fit":  # pixels that must be shrunk, and rows of air to be added
        mm /= 1.3
        shape = round(_FIELD_MM[0] / mm), round(_FIELD_MM[1] / mm)
    ct = abdomen((_SLICES, *shape), (_SLICE_MM, mm, mm), seed=_SEED, lesions=6).ct
    return Slices(ct, (mm, mm), "Slices of trtseg's phantom.", {})
