"""The notice that stands on every result, and the signature of a label map."""

from __future__ import annotations

import re
from pathlib import Path

NOTICE = "not for clinical use"


def signature(fingerprint: str = "") -> str:
    """Text that a file of labels carries: who wrote it, and which model and options, by their fingerprint, made it."""
    return f"trtseg, {NOTICE}" + (f", made by {fingerprint}" if fingerprint else "")


def bears_notice(path: Path) -> bool:
    """Whether a report, a page or a picture bears the notice, as trtseg writes it; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return NOTICE.encode() in file.read(1 << 16).lower()
    except OSError:
        return False


def signed(text: str) -> str | None:
    """Fingerprint in a signature, "" where it has none; None: the text is no signature."""
    found = re.fullmatch(rf"trtseg, {NOTICE}(?:, made by (\w+))?", text)
    return None if found is None else found[1] or ""
