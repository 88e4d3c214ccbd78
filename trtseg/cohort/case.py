"""A CT of a cohort and its files, and what became of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtseg.errors import ArgumentError
from trtseg.io.dicom_out import file_names
from trtseg.io.find import is_changed, made_by
from trtseg.io.names import LABEL_OBJECTS
from trtseg.warnings import ResultWarning

if TYPE_CHECKING:
    from trtseg.result import Segmentation


@dataclass(frozen=True)
class Case:
    """A CT and the files that are written for it; what nobody wants besides is None.

    ``series`` is that of `trtseg.load`. With kinds of ``dicom`` objects, ``labels`` is the first of their files,
    and the folder that it is in belongs to the case. A CT in another store than the file system has a ``url``, and
    ``source`` is its name only. ``is_named``: the user named the file ``labels``.
    """

    source: Path
    labels: Path
    report: Path | None = None
    preview: Path | None = None
    html: Path | None = None
    series: str | None = None
    dicom: tuple[str, ...] = ()
    url: str | None = None
    is_named: bool = False

    @property
    def input(self) -> str:
        """The URL, or else the path of the CT."""
        return self.url or os.fspath(self.source)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files to write, labels first; of DICOM pictures the first."""
        more = [self.labels.with_name(name) for _, name in file_names(self.dicom)[1:]]
        paths = (self.labels, *more, self.report, self.preview, self.html)
        return tuple(path for path in paths if path is not None)

    def into(self, folder: Path) -> Case:
        """The same case with its files in another folder."""
        more = {name: getattr(self, name) for name in ("labels", "report", "preview", "html")}
        return replace(self, **{name: folder / path.name for name, path in more.items() if path is not None})

    def check_own(self, what_to_do: str) -> None:
        """Raise an ArgumentError if labels lie where those of the case go, and trtseg did not write them."""
        for path in () if self.is_named else self.outputs:
            holds_labels = path.name in LABEL_OBJECTS if self.dicom else path == self.labels
            if holds_labels and is_of_others(path):
                raise ArgumentError(
                    f"inputs: {path} is there, and trtseg did not write it; the labels of {self.input} would "
                    f"replace it, {what_to_do}"
                )
            if holds_labels and is_changed(path):
                raise ArgumentError(
                    f"inputs: {path} is there, and somebody changed it after trtseg had written it; the labels of "
                    f"{self.input} would replace it, {what_to_do}"
                )


def is_of_others(path: Path) -> bool:
    """Tell whether there is a file where labels go, not an empty one, and no label map or picture of trtseg."""
    is_picture = path.name == file_names(("sc",))[0][1]
    return not is_picture and not is_empty(path) and made_by(path) is None


def is_empty(path: Path) -> bool:
    """Tell whether a file is gone or empty, so that it holds nothing to be kept."""
    try:
        return not path.stat().st_size
    except FileNotFoundError:
        return True
    except OSError:
        return False


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    case : Case
        The case.
    result : Segmentation or None
        The segmentation, once its files are written, if this process made it. It is large: whoever goes through many
        cases takes the figures out of it and lets it go.
    error : Exception or None
        Why the case failed: a TrtsegError, or any other exception, which is a bug of trtseg.
    seconds : float
        Time to read, segment and write this case, without waiting for other cases.
    row : mapping or None
        The measurements, as `trtseg.cohort.table.COLUMNS` names them; None if the case failed.
    warnings : tuple of ResultWarning
        What the volumes may be wrong by.
    is_old : bool
        The files were complete before, and stay.
    changed : Path or None
        A file of an old case that somebody changed after trtseg had written it. Files and row stay as they are.
    """

    case: Case
    result: Segmentation | None
    error: Exception | None
    seconds: float
    row: Mapping[str, Any] | None = None
    warnings: tuple[ResultWarning, ...] = ()
    is_old: bool = False
    changed: Path | None = None
