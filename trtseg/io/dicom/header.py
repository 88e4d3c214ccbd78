"""Values of a DICOM header, read from their bytes: pydicom's own conversion warns of, or stops at, what is odd."""

from __future__ import annotations

import math
from typing import Any

from trtseg.errors import InputError


def texts(header: Any, keyword: str) -> tuple[str, ...]:
    """Values of an element of text or numbers as text, without blanks around them; empty if there is no such element.

    Parameters
    ----------
    header : pydicom.Dataset
        What may hold the element.
    keyword : str
        ``ImageType``, for example; no sequence.
    """
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    try:
        element = header.get_item(tag)
        value = None if element is None else element.value
        if isinstance(value, bytes) and _is_binary(element, tag):
            value = header[tag].value
    except Exception:  # pydicom raises errors of many types; to whoever expects a number, this is none
        return ("?",)
    if value is None:
        return ()
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        value = value.split("\\")
    many = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
    found = tuple(str(one).strip(" \0\t\r\n") for one in many)
    return found if any(found) else ()


def sequence(name: str, header: Any, keyword: str) -> list[Any]:
    """Items of a sequence; an InputError, which begins with ``name``, if it is damaged."""
    try:
        return list(header.get(keyword) or ())
    except Exception as error:
        raise InputError(f"{name}: {keyword} is damaged, fetch the file again") from error


def text(header: Any, keyword: str) -> str:
    """First value of an element as text, ``""`` if there is none."""
    return next(iter(texts(header, keyword)), "")


def numbers(name: str, header: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Read an element of ``count`` finite numbers; None if there is no such element.

    Raises
    ------
    InputError
        If it holds anything else. The message begins with ``name``.
    """
    found = texts(header, keyword)
    if not found:
        return None
    try:
        values = tuple(float(one) for one in found)
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        expected = "a number" if count == 1 else f"{count} numbers"
        raise InputError(f"{name}: {keyword} is not {expected}; the file is damaged, fetch it again")
    return values


def integer(name: str, header: Any, keyword: str, default: int | None = None) -> int:
    """Read an element of one whole number, which must be there if ``default`` is None; see `numbers`."""
    found = numbers(name, header, keyword, 1)
    if found is None and default is not None:
        return default
    if found is None or found[0] != int(found[0]):
        what = "is missing" if found is None else "is not a whole number"
        raise InputError(f"{name}: {keyword} {what}; the file is damaged or holds no picture, fetch it again")
    return int(found[0])


def _is_binary(element: Any, tag: int) -> bool:
    """Whether an element that pydicom has not converted yet holds numbers in binary."""
    from pydicom.datadict import dictionary_VR

    return (element.VR or dictionary_VR(tag)) in ("US", "SS", "UL", "SL", "FL", "FD", "US or SS", "UN")
