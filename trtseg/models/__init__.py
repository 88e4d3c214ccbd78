"""The models: folders with a ``model.json``, the nets it names, and a model card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from trtseg.errors import ModelError
from trtseg.spec import CascadeSpec

_SHIPPED = Path(__file__).parent


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: its folder and what its ``model.json`` says."""

    folder: Path
    spec: CascadeSpec

    def read(self, role: str, *, fp16: bool = False) -> bytes:
        """The ONNX file of the net ``role``, as bytes whose SHA-256 is the one in ``model.json``.

        Returning the bytes that were hashed, not a path, leaves no moment in which the file could be exchanged.
        """
        name = f"{role}.fp16.onnx" if fp16 else f"{role}.onnx"
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(
                f"{path}: cannot be read ({error.strerror}); install or export the model again"
            ) from error
        expected, got = self.spec.sha256.get(name), hashlib.sha256(data).hexdigest()
        if got != expected:
            raise ModelError(
                f"{path}: its SHA-256 is {got}, but model.json says {expected}; the file was changed or is damaged: "
                "install or export the model again"
            )
        return data


def available() -> list[str]:
    """Names of the models that trtseg ships."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/model.json"))


def find(model: str | Path) -> ModelFiles:
    """The model of that name, or in that folder.

    Raises
    ------
    ModelError
        There is no such model, or its ``model.json`` cannot be understood.
    """
    shipped = available()
    folder = _SHIPPED / model if str(model) in shipped else Path(model)
    manifest = folder / "model.json"
    try:
        text = manifest.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"model: got {str(model)!r}; expected one of {', '.join(shipped) or '(none is installed)'}, "
            "or a folder with a model.json as training.export writes it"
        ) from error
    return ModelFiles(folder, CascadeSpec.from_json(text))
