"""``model.json``, the manifest of a model's folder: name, version, licence, the nets' roles, and the hash of each file.

The specs of the nets are in their ONNX files.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from trtseg.errors import ModelError
from trtseg.spec import CascadeSpec, ModelSpec, check_roles, checked_fields, decoded

_FIELDS = {"name", "version", "licence", "intended_use", "nets", "sha256"}


def to_json(spec: CascadeSpec) -> str:
    """Write the manifest of a model; the inverse of `from_json`."""
    manifest = {
        "name": spec.name,
        "version": spec.version,
        "licence": spec.licence,
        "intended_use": spec.intended_use,
        "nets": [net.role for net in spec.nets],
        "sha256": spec.sha256,
    }
    return json.dumps(manifest, indent=2) + "\n"


def from_json(text: str, read_spec: Callable[[str, dict[str, str]], ModelSpec]) -> CascadeSpec:
    """Read a manifest.

    Parameters
    ----------
    text : str
        The content of ``model.json``.
    read_spec : callable
        Gives the spec of the net of a role. Called with the role and the hashes of the model's files.

    Raises
    ------
    ModelError
        The manifest is malformed, or ``read_spec`` raises it.
    """
    fields = checked_fields("model.json", decoded("model.json", text), _FIELDS)
    roles, hashes = fields["nets"], fields["sha256"]
    check_roles(roles)
    if not isinstance(hashes, dict):
        raise ModelError(f"sha256: got {hashes!r}; expected a hash for each file name")
    nets = tuple(read_spec(role, hashes) for role in roles)
    return CascadeSpec(**{**fields, "nets": nets})
