"""The spec of a net and of a model: what goes in, what the logits mean, and where the weights come from.

A net's spec is stored once, as JSON in the metadata of each of its ONNX files. The hash of the file covers it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.body import Hu, Run, on_host, place_body, place_picture
from trtseg.errors import ModelError
from trtseg.fit import Fit

#: Key of the ModelSpec's JSON in the metadata of an ONNX file.
METADATA_KEY = "trtseg"
_CHANNELS = {"liver": 1, "tumour": 1, "one-step": 3}


@dataclass(frozen=True)
class ModelSpec:
    """One net: its input, the meaning of its output, and its origin.

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
        Meaning of each output channel.
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

    def fit_volume(self, hu: Hu, spacing: tuple[float, float], run: Run = on_host) -> Fit:
        """Place the slices of a CT ``[Z, Y, X]`` in HU, with ``spacing`` (sy, sx) in mm, on this net's grid.

        ``run`` runs ops where ``hu`` is, see `trtseg.body.Run`.
        """
        if self.pixel_mm is not None:
            return place_body(hu, spacing, self.size, self.pixel_mm, run)
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
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read the text that `to_json` wrote."""
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**checked_fields("spec", decoded("spec", text), names, optional={"pixel_mm"}))


@dataclass(frozen=True)
class CascadeSpec:
    """A model: one or two nets, and the SHA-256 of each file of its folder.

    Attributes
    ----------
    name, version : str
        Name and version in reports.
    nets : tuple of ModelSpec
        ``(liver, tumour)`` for the cascade, or a single ``one-step`` net.
    sha256 : dict
        File name (``<role>.onnx``, ``<role>.fp16.onnx``, ...) to the hexadecimal SHA-256 of that file.
    licence, intended_use : str
        Terms and purpose of the model as a whole.
    """

    name: str
    version: str
    nets: tuple[ModelSpec, ...]
    sha256: dict[str, str]
    licence: str
    intended_use: str

    def __post_init__(self) -> None:
        for field in ("name", "version", "licence", "intended_use"):
            if not isinstance(getattr(self, field), str):
                raise ModelError(f"{field}: got {getattr(self, field)!r}; expected text")
        if not isinstance(self.sha256, dict) or not all(isinstance(v, str) for v in self.sha256.values()):
            raise ModelError(f"sha256: got {self.sha256!r}; expected a hash for each file name")
        check_roles([net.role for net in self.nets])
        if len({(net.size, net.fit, net.pixel_mm) for net in self.nets}) != 1:
            raise ModelError("nets: the nets of a cascade must share size, fit and pixel_mm")


def check_roles(roles: object) -> None:
    """Refuse roles that are not those of a model: ``[liver, tumour]`` or ``[one-step]``, in this order."""
    if roles not in (["liver", "tumour"], ["one-step"]):
        raise ModelError(f"nets: got roles {roles}; expected liver and tumour, or one-step")


def _is_number(value: object) -> bool:
    """Whether this is a number that a float can hold; integers of JSON may be larger."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def decoded(name: str, text: str) -> Any:
    """Parse JSON; a ModelError with ``name`` if the text is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the second where lists lie too deep in each other
        raise ModelError(f"{name}: not JSON ({error}); export the model again") from error


def checked_fields(
    name: str, values: Any, expected: set[str], *, optional: set[str] | None = None
) -> dict[str, Any]:
    """Return ``values``, if it is a JSON object with the ``expected`` keys, of which the ``optional`` may be missing.

    ``name`` is for the message.
    """
    got = set(values) if isinstance(values, dict) else set()
    required = expected - (optional or set())
    if not required <= got <= expected:
        raise ModelError(
            f"{name}: missing {sorted(required - got)}, unknown {sorted(got - expected)}; "
            "the file was written by another version: export the model again"
        )
    fields: dict[str, Any] = values
    return fields
