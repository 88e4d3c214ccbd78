"""The models: folders with a ``model.json``, the ONNX files of the nets, and a model card."""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trtseg.errors import ArgumentError, ModelError
from trtseg.models import manifest
from trtseg.models.onnx_spec import spec_in
from trtseg.spec import CascadeSpec, ModelSpec

_SHIPPED = Path(__file__).parent


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: its folder, and the spec of the model and its nets."""

    folder: Path
    spec: CascadeSpec

    def read(self, name: str) -> bytes:
        """Read a file of the model, as bytes whose SHA-256 is the one in ``model.json``.

        To return the bytes that were hashed, not a path, leaves no moment in which the file could be exchanged.
        """
        return _read(self.folder / name, self.spec.sha256)


def available() -> list[str]:
    """Names of the models that trtseg ships."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/model.json"))


def find(model: str | os.PathLike[str]) -> ModelFiles:
    """Find the model of that name, or in that folder.

    Raises
    ------
    ModelError
        There is no such model, or its ``model.json`` or the spec of one of its nets cannot be read.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise ArgumentError(f"model: got a {type(model).__name__}; expected a name or the path of a folder")
    shipped = available()
    folder = _SHIPPED / model if str(model) in shipped else Path(model)
    try:
        text = (folder / "model.json").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no text, or no name of a file
        raise ModelError(
            f"model: got {str(model)!r}; expected one of {', '.join(shipped) or '(none is installed)'}, "
            "or a folder with a model.json as training.export writes it"
        ) from error
    return ModelFiles(folder, manifest.from_json(text, partial(_spec_of, folder)))


def _spec_of(folder: Path, role: str, sha256: dict[str, str]) -> ModelSpec:
    """Read the spec in ``<role>.onnx``, the file that every model has, without reading its weights."""
    path = folder / f"{role}.onnx"
    try:
        with path.open("rb") as file:  # an empty one cannot be mapped
            spec = spec_in(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.peek(1) else b"")
    except OSError as error:
        raise _unreadable(path, error) from error
    except ModelError as error:
        _read(path, sha256)  # if the file was changed since the export, that is the better message
        raise ModelError(f"{path}: {error}") from error
    if spec.role != role:
        raise ModelError(f"{path}: holds a {spec.role} net; export the model again")
    return spec


def _read(path: Path, sha256: dict[str, str]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    expected, got = sha256.get(path.name), hashlib.sha256(data).hexdigest()
    if got != expected:
        raise ModelError(
            f"{path}: its SHA-256 is {got}, but model.json says {expected}; the file was changed or is damaged: "
            "install or export the model again"
        )
    return data


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path}: cannot be read ({error.strerror}); install or export the model again")
