"""The notice that stands on every result."""

NOTICE = "not for clinical use"
