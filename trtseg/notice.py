"""The notice that stands on every result, and the signature of a label map."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

NOTICE = "not for clinical use"


class Signature(NamedTuple):
    """What a label map of trtseg says of itself; both are "" where it does not.

    Attributes
    ----------
    fingerprint : str
        Of the model and the options that made it.
    checksum : str
        Of its labels, see `checksum_of`.
    """

    fingerprint: str
    checksum: str


def signature(fingerprint: str = "", checksum: str = "") -> str:
    """Text that a file of labels carries: who wrote it, and a `Signature`."""
    made, labels = f", made by {fingerprint}" * bool(fingerprint), f", labels {checksum}" * bool(checksum)
    return f"trtseg, {NOTICE}{made}{labels}"


def checksum_of(labels: Any) -> str:
    """CRC-32 of labels, uint8 canonical ``[Z, Y, X]``, by which it is seen that somebody changed them later."""
    from isal import isal_zlib  # quicker than Python's; only those need it who write labels

    crc = 0
    for plane in labels:
        crc = isal_zlib.crc32(plane.data if plane.flags.c_contiguous else plane.tobytes(), crc)
    return f"{crc:08x}"


def bears_notice(path: Path) -> bool:
    """Whether a report, a page or a picture bears the notice, as trtseg writes it; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return NOTICE.encode() in file.read(1 << 16).lower()
    except OSError:
        return False


def signed(text: str) -> Signature | None:
    """What a text says that is a signature; None: it is none."""
    found = re.fullmatch(rf"trtseg, {NOTICE}(?:, made by (\w+))?(?:, labels ([0-9a-f]{{8}}))?", text)
    return None if found is None else Signature(found[1] or "", found[2] or "")
