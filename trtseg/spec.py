"""What a net expects and what its numbers mean: frozen, and stored as JSON with the weights."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg.body import place_body, place_picture
from trtseg.errors import ModelError
from trtseg.fit import Fit

#: Key of the ModelSpec's JSON in the metadata of an ONNX file.
METADATA_KEY = "trtseg"
_CHANNELS = {"liver": 1, "tumour": 1, "one-step": 3}


@dataclass(frozen=True)
class ModelSpec:
    """One net: its input, its output and where it comes from.

    Attributes
    ----------
    role : str
        ``liver``, ``tumour`` (one logit a pixel each) or ``one-step`` (three: background, liver, tumour).
    size : (int, int)
        Rows and columns ``(H, W)`` of the net's input ``[n, 1, H, W]``.
    fit : str
        ``body``: the net's pixels have ``pixel_mm``, and ``size`` is laid around the patient's body (`trtseg.body`);
        ``fit``: the field of view is scaled uniformly into ``size`` and padded with air; ``native``: a slice must have
        that shape already.
    window : (float, float)
        Hounsfield units that map to 0 and 1; values outside are clamped.
    threshold : float
        Probability above which a pixel belongs to the class; not used by ``one-step``, where the largest logit wins.
    classes : tuple of str
        What each output channel stands for.
    version, trained_on, licence, intended_use : str
        Provenance.
    pixel_mm : float or None
        Size of the net's pixels with ``body``, unless a large body needs larger ones; None with the others.
    """

    role: str
    size: tuple[int, int]
    fit: str
    window: tuple[float, float]
    threshold: float
    classes: tuple[str, ...]
    version: str
    trained_on: str
    licence: str
    intended_use: str
    pixel_mm: float | None = None

    def __post_init__(self) -> None:
        for field in ("size", "window", "classes"):  # JSON has lists only
            value = getattr(self, field)
            if not isinstance(value, list | tuple):
                raise ModelError(f"{field}: got {value!r}; expected a list")
            object.__setattr__(self, field, tuple(value))
        for field in ("role", "fit", "version", "trained_on", "licence", "intended_use"):
            if not isinstance(getattr(self, field), str):
                raise ModelError(f"{field}: got {getattr(self, field)!r}; expected text")
        if self.role not in _CHANNELS:
            raise ModelError(f"role: got {self.role!r}; expected one of {', '.join(_CHANNELS)}")
        if self.fit not in ("body", "fit", "native"):
            raise ModelError(f"fit: got {self.fit!r}; expected 'body', 'fit' or 'native'")
        if self.fit != "body":
            if self.pixel_mm is not None:
                raise ModelError(f"pixel_mm: got {self.pixel_mm!r}; fit {self.fit!r} has none, leave it out")
        elif self.pixel_mm is None or not _is_number(self.pixel_mm) or not self.pixel_mm > 0:
            raise ModelError(f"pixel_mm: got {self.pixel_mm!r}; fit 'body' needs a positive number of mm")
        if len(self.size) != 2 or not all(type(n) is int and n >= 1 for n in self.size):
            raise ModelError(f"size: got {self.size}; expected rows and columns")
        if (
            len(self.window) != 2
            or not all(map(_is_number, self.window))
            or not self.window[0] < self.window[1]
        ):
            raise ModelError(f"window: got {self.window}; expected a lower and an upper bound in HU")
        if not _is_number(self.threshold) or not 0 < self.threshold < 1:
            raise ModelError(f"threshold: got {self.threshold}; expected a probability between 0 and 1")
        if len(self.classes) != self.channels:
            raise ModelError(
                f"classes: got {self.classes}; a {self.role} net has {self.channels} output channels"
            )

    @property
    def channels(self) -> int:
        """Number of output channels: the net maps ``[n, 1, H, W]`` to ``[n, channels, H, W]``."""
        return _CHANNELS[self.role]

    @property
    def logit_threshold(self) -> float:
        """The threshold as a logit, rounded to FP32: ``p > t`` is tested as ``logit > log(t / (1 - t))``."""
        return float(np.float32(math.log(self.threshold / (1 - self.threshold))))

    def fit_volume(self, hu: NDArray[np.int16], spacing: tuple[float, float]) -> Fit:
        """Place the slices of a CT ``[Z, Y, X]`` in HU, with ``spacing`` (sy, sx) in mm, on this net's grid."""
        if self.pixel_mm is not None:
            return place_body(hu, spacing, self.size, self.pixel_mm)
        return self.fit_slice((hu.shape[1], hu.shape[2]), spacing)

    def fit_slice(self, shape: tuple[int, int], spacing: tuple[float, float]) -> Fit:
        """Place slices of ``shape`` (Y, X) with ``spacing`` (sy, sx) in mm, whatever they show, on this net's grid.

        With ``body`` this is a guess that holds for most CTs; `fit_volume` looks where the patient is.
        """
        if self.pixel_mm is not None:
            return place_picture(shape, spacing, self.size, self.pixel_mm)
        if self.fit == "fit":
            return Fit.whole_field_of_view(shape, spacing, self.size)
        if shape != self.size:
            raise ModelError(
                f"slices of {shape[0]}x{shape[1]} do not fit a {self.role} net of native size "
                f"{self.size[0]}x{self.size[1]}; resample them or use a model with fit 'body'"
            )
        return Fit.identity(shape)

    def to_json(self) -> str:
        """Serialise; the inverse of `from_json`."""
        return json.dumps(_without_none(dataclasses.asdict(self)), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote."""
        return cls(**_fields(cls, _decode(text)))


@dataclass(frozen=True)
class CascadeSpec:
    """A model that can be shipped: one or two nets and the SHA-256 of each of their files.

    Attributes
    ----------
    name, version : str
        What it is called in reports.
    nets : tuple of ModelSpec
        ``(liver, tumour)`` for the cascade, or a single ``one-step`` net.
    sha256 : dict
        File name (``<role>.onnx``, ``<role>.fp16.onnx``) to the hexadecimal SHA-256 of that file.
    """

    name: str
    version: str
    nets: tuple[ModelSpec, ...]
    sha256: dict[str, str]

    def __post_init__(self) -> None:
        if not isinstance(self.nets, list | tuple):
            raise ModelError(f"nets: got {self.nets!r}; expected a list of specs")
        nets = tuple(n if isinstance(n, ModelSpec) else ModelSpec(**_fields(ModelSpec, n)) for n in self.nets)
        object.__setattr__(self, "nets", nets)
        if not isinstance(self.name, str) or not isinstance(self.version, str):
            raise ModelError(f"name, version: got {self.name!r}, {self.version!r}; expected text")
        if not isinstance(self.sha256, dict) or not all(isinstance(v, str) for v in self.sha256.values()):
            raise ModelError(f"sha256: got {self.sha256!r}; expected a hash for each file name")
        roles = tuple(n.role for n in nets)
        if roles not in (("liver", "tumour"), ("one-step",)):
            raise ModelError(f"nets: got roles {roles}; expected liver and tumour, or one-step")
        if len({(n.size, n.fit, n.pixel_mm) for n in nets}) != 1:
            raise ModelError("nets: the nets of a cascade must share size, fit and pixel_mm")

    def to_json(self) -> str:
        """Serialise, readable, as the text of ``model.json``; the inverse of `from_json`."""
        values = dataclasses.asdict(self)
        values["nets"] = [_without_none(net) for net in values["nets"]]
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CascadeSpec:
        """Read what `to_json` wrote."""
        return cls(**_fields(cls, _decode(text)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(f"spec: not JSON ({error}); export the model again") from error


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` without those that are None: files of models that have no such value stay as they were."""
    return {name: value for name, value in values.items() if value is not None}


def _fields(cls: type, values: Any) -> dict[str, Any]:
    """``values``, if it is an object with the fields of the dataclass ``cls``; those with a default may be missing."""
    expected = {f.name for f in dataclasses.fields(cls)}
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    got = set(values) if isinstance(values, dict) else set()
    if not required <= got <= expected:
        raise ModelError(
            f"{cls.__name__}: missing {sorted(required - got)}, unknown {sorted(got - expected)}; "
            "the file was written by another version: export the model again"
        )
    fields: dict[str, Any] = values
    return fields
