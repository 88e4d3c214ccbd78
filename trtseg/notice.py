"""The one sentence that goes with every result."""

NOTICE = "not for clinical use"
