"""What the volume of a result may be wrong by: warnings that go with a CT and its result."""

from __future__ import annotations

from typing import NamedTuple


class ResultWarning(NamedTuple):
    """A reason to look at a result before anybody believes its volumes.

    Attributes
    ----------
    code : str
        Stable, for programs: ``liver-cut``.
    text : str
        A sentence for people: what was seen, what it does to the result, and what to do.
    """

    code: str
    text: str
