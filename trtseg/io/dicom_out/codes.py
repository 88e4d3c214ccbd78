"""The codes, names and numbers that all objects share."""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from typing import Any

from trtseg.notice import NOTICE

#: What is measured and segmented: code, coding scheme, meaning.
LIVER = ("10200004", "SCT", "Liver")
MASS = ("4147007", "SCT", "Mass")  # safer than "neoplasm" for a finding that nobody has proved
#: Categories of segments. 3D Slicer, dcmqi and most tools know this code of an anatomical structure.
ANATOMY = ("123037004", "SCT", "Anatomical Structure")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
VOLUME = ("118565006", "SCT", "Volume")
LONG_AXIS = ("103339001", "SCT", "Long axis")
SHORT_AXIS = ("103340004", "SCT", "Short axis")
CERTAINTY = ("111012", "DCM", "Certainty of Finding")  # of the device, not a probability of cancer
ML = ("mL", "UCUM", "mL")
MM = ("mm", "UCUM", "mm")
PERCENT = ("%", "UCUM", "%")
CT = ("25045-6", "LN", "CT unspecified body region")
REPORT = ("126000", "DCM", "Imaging Measurement Report")
COMMENT = ("121106", "DCM", "Comment")
AI = ("123110", "DCM", "Artificial Intelligence")
ENGLISH = ("en", "RFC5646", "English")

NAME = "trtseg"
#: Stands for trtseg as the device that observed.
DEVICE_UID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_DNS, NAME).int}"

_SHORT, _LONG = 64, 1024  # characters that a Long String and a Short Text hold


def code(triple: tuple[str, str, str]) -> Any:
    """Make the coded concept that highdicom takes."""
    from highdicom.sr import CodedConcept

    return CodedConcept(*triple)


def decimal(number: float) -> str:
    """Write a number as a Decimal String, in 16 characters at most."""
    from pydicom.valuerep import format_number_as_ds

    return str(format_number_as_ds(float(number)))


def new_uid() -> str:
    """A UID that no other object has."""
    return f"2.25.{uuid.uuid4().int}"


def as_read(dataset: Any) -> Any:
    """Give an object as it is read from a file: elements that stay as they are read are written at once."""
    import pydicom

    file = io.BytesIO()
    dataset.save_as(file)
    file.seek(0)
    return pydicom.dcmread(file)


def software(provenance: Mapping[str, Any]) -> str:
    """Version of trtseg that made a result."""
    return str(provenance.get("versions", {}).get(NAME, "unknown"))[:_SHORT]


def model(provenance: Mapping[str, Any]) -> str:
    """Name and version of the model that made a result."""
    return f"{provenance.get('model', 'unknown')} {provenance.get('model_version', '')}".strip()


def version(provenance: Mapping[str, Any]) -> str:
    """Version of the algorithm: of trtseg, and its model."""
    return f"{software(provenance)}, model {model(provenance)}"[:_SHORT]


def parameters(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What else the labels depend on, with the notice first."""
    made = {"notice": NOTICE}
    names = ("device", "precision", "search_mm", "fingerprint")
    made |= {name: str(provenance[name]) for name in names if name in provenance}
    return {name: value[: _LONG // 8] for name, value in made.items()}


def description(what: str) -> str:
    """Describe a series of that kind, in a line of at most 64 letters."""
    return f"{NAME} {what}, {NOTICE}"


def equipment(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The equipment that made an object, as highdicom's arguments."""
    return {
        "manufacturer": NAME,
        "manufacturer_model_name": NAME,
        "software_versions": software(provenance),
        "device_serial_number": str(provenance.get("fingerprint", "none"))[:_SHORT],
    }
