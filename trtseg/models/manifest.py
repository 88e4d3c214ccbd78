"""``model.json``, the manifest of a model's folder: name, version, licence, the nets' roles, and the hash of each file.

The specs of the nets are in their ONNX files. Folders that trtseg 0.5 and older wrote have them in ``model.json`` too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from trtseg.errors import ModelError
from trtseg.spec import CascadeSpec, ModelSpec, check_roles, checked_fields, decoded

_FIELDS = {"name", "version", "licence", "intended_use", "nets", "sha256"}
_FIELDS_UNTIL_0_5 = {"name", "version", "nets", "sha256"}


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
    """Read a manifest, of today's or of the older layout.

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
    values = decoded("model.json", text)
    if isinstance(values, dict) and _holds_specs(values.get("nets")):
        return _from_0_5(values)
    fields = checked_fields("model.json", values, _FIELDS)
    roles, hashes = fields["nets"], fields["sha256"]
    check_roles(roles)
    if not isinstance(hashes, dict):
        raise ModelError(f"sha256: got {hashes!r}; expected a hash for each file name")
    nets = tuple(read_spec(role, hashes) for role in roles)
    return CascadeSpec(**{**fields, "nets": nets})


def _holds_specs(nets: object) -> bool:
    return isinstance(nets, list) and any(isinstance(net, dict) for net in nets)


def _from_0_5(values: dict[str, Any]) -> CascadeSpec:
    """Read the older layout. `check_spec` compares its specs with the ONNX files when these are opened."""
    fields = checked_fields("model.json", values, _FIELDS_UNTIL_0_5)
    nets = tuple(ModelSpec.from_json(json.dumps(net)) for net in fields["nets"])
    return CascadeSpec(**{**fields, "nets": nets}, licence=nets[0].licence, intended_use=nets[0].intended_use)
