"""The sidecar of an engine: a JSON file beside it, with the engine's source, its build and its acceptance."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtseg.errors import ModelError
from trtseg.spec import ModelSpec

#: Raised when the layout of the sidecar or the way in which engines are built changes: older engines are built again.
FORMAT = 2

_KINDS: dict[str, Any] = {
    "sha256": str,
    "size": int,
    "model": dict,
    "tensors": list,
    "settings": dict,
    "warnings": list,
    "built": dict,
    "acceptance": dict | None,
}


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on: two engines with one key are interchangeable.

    Attributes
    ----------
    role : str
        Role of the net, for people: the hash implies it.
    onnx_sha256 : str
        Hexadecimal SHA-256 of the ONNX file.
    runtime, runtime_version : str
        Name of the runtime, ``tensorrt`` for example, and its full version.
    target : str
        Compute capability, ``sm_86``, or ``portable``.
    gpu : str
        Name of the GPU if the engine is good for that model only, else empty.
    precision : str
        Name of a `trtseg.engines.precision.Precision`.
    batch : int
        Slices in one run.
    """

    role: str
    onnx_sha256: str
    runtime: str
    runtime_version: str
    target: str
    gpu: str
    precision: str
    batch: int

    @property
    def stem(self) -> str:
        """File name of the engine without its ending: the whole key, readable, with 16 digits of the hash."""
        parts = [self.role, self.runtime, self.runtime_version, self.target, self.gpu, self.precision]
        parts += [f"b{self.batch}", self.onnx_sha256[:16]]
        return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part) for part in parts if part)

    @property
    def file_name(self) -> str:
        """File name of the engine."""
        return f"{self.stem}.engine"

    def __str__(self) -> str:
        where = f"{self.target} ({self.gpu})" if self.gpu else self.target
        return f"{self.role} {where} {self.precision} batch {self.batch}"


@dataclass(frozen=True)
class Sidecar:
    """Content of a sidecar.

    Attributes
    ----------
    key : EngineKey
        Key of the engine.
    sha256, size : str, int
        Of the engine file, in hexadecimal and in bytes.
    spec : ModelSpec
        What the net expects and what its logits mean.
    model : dict
        ``name`` and ``version`` of the net's model.
    tensors : list of dict
        ``name``, ``mode`` (``input``, ``output``), ``dtype`` and ``shape`` of the engine's tensors.
    settings : dict
        How the builder was set.
    warnings : list of str
        Warnings of the runtime.
    built : dict
        ``at`` (UTC), ``seconds``, ``trtseg`` (version) and ``platform``.
    acceptance : dict or None
        Result of comparing the engine with the FP32 reference, as `trtseg.engines.acceptance.Acceptance.to_json` makes
        it; None before.
    """

    key: EngineKey
    sha256: str
    size: int
    spec: ModelSpec
    model: dict[str, str]
    tensors: list[dict[str, Any]]
    settings: dict[str, Any]
    warnings: list[str]
    built: dict[str, Any]
    acceptance: dict[str, Any] | None = None

    def to_json(self) -> str:
        """Serialise, readable; the inverse of `from_json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Sidecar:
        """Read the text that `to_json` wrote; a ModelError says why another text is refused."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"not JSON ({error})") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ModelError("written by another version of trtseg")
        try:
            key, spec = EngineKey(**values.pop("key")), ModelSpec(**values.pop("spec"))
            found = cls(key=key, spec=spec, **values)
        except (TypeError, KeyError) as error:
            raise ModelError(f"not what trtseg writes ({error})") from error
        wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(found, name), kind)]
        wrong += [name for name, v in vars(key).items() if type(v) is not (int if name == "batch" else str)]
        if wrong or not {"at", "seconds"} <= found.built.keys():
            raise ModelError(f"not what trtseg writes ({', '.join(wrong) or 'built'})")
        return found


def sidecar_path(engine: Path) -> Path:
    """Path of an engine file's sidecar."""
    return engine.with_name(f"{engine.name}.json")
