"""The options ``--liver-label`` and ``--tumour-label``: which labels of a file from elsewhere are liver and tumour."""

from __future__ import annotations

from trtseg.errors import ArgumentError

_DIGITS, _SHOWN = 18, 60  # characters of a number; those of an option that a message shows


def meaning_of(liver: str | None, tumour: str | None) -> dict[int, int] | None:
    """What each label stands for, as `trtseg.io.read_labels` takes it: 1 liver, 2 tumour; None without the options."""
    if liver is None:
        if tumour is not None:
            raise ArgumentError("--tumour-label: got it without --liver-label; give both, or neither")
        return None
    meaning: dict[int, int] = {}
    given = [("--liver-label", liver, 1)]
    if tumour is not None:
        given.append(("--tumour-label", tumour, 2))
    for option, values, stands_for in given:
        for value in values.split(","):
            if not value.strip().isdecimal() or len(value) > _DIGITS or int(value) < 1:
                raise ArgumentError(
                    f"{option}: got {values[:_SHOWN]!r}; expected numbers from 1 on with commas between them"
                )
            if meaning.setdefault(int(value), stands_for) != stands_for:
                raise ArgumentError(f"{option}: {value} is liver already; give each label once")
    return meaning
