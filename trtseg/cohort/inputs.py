"""The CTs that inputs stand for: files, folders, patterns, lists and URLs."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trtseg.cohort.remote import find_remote, is_url, path_in, read_remote
from trtseg.errors import ArgumentError, InputError
from trtseg.io.dicom import one_of_each_series
from trtseg.io.find import find_cts, made_by
from trtseg.io.names import DICOM, IMAGES, WRITTEN, ZIP, is_folder, stem

_LIST = ".csv"
_COLUMNS = ("input", "output", "series")
_BEYOND = ""  # the cells behind them


@dataclass(frozen=True)
class Found:
    """A CT: its path, or the path inside of its URL; and the file of its labels in the folder of the results."""

    source: Path
    labels: Path
    url: str | None = None
    series: str | None = None

    def objects(self, first: str) -> Path:
        """The ``first`` of the case's DICOM objects in the folder of the results."""
        return self.labels.with_name(f"{stem(self.labels).removesuffix('_seg')}_dicom") / first


def find(inputs: Sequence[str | os.PathLike[str]], output: Path, left_out: list[Path]) -> list[Found]:
    """Find the CTs that inputs stand for, in their order; those of lists and URLs come last.

    Parameters
    ----------
    inputs : sequence of path or str
        Files; folders, see `trtseg.io.find.find_cts`; patterns as ``scans/*/ct.nii.gz`` that are no file; URLs, see
        `trtseg.cohort.remote.find_remote`; and lists: ``.csv`` files with a column ``input``, and if wanted ``output``
        (a path in the folder of the results) and ``series`` (a Series Instance UID). Paths of a list start at its
        folder.
    output : Path
        The folder of the results, which is not looked into.
    left_out : list
        Gets the files that were taken for label maps.

    Raises
    ------
    ArgumentError
        If there is no input.
    InputError
        If an input holds no CT, or cannot be read.
    """
    paths: list[Path] = []
    named: list[Found] = []
    urls: list[str] = []
    for given in inputs:
        if os.fspath(given).lower().endswith(_LIST):
            for text, place, series in _listed(os.fspath(given)):
                if place or series:
                    named.append(single(text, place, series))
                elif is_url(text):
                    urls.append(text)
                else:
                    paths.append(Path(text))
        elif is_url(given):
            urls.append(os.fspath(given))
        else:
            paths += _matching(Path(given))
    found = _local(paths, output, left_out) if paths else []
    found += named
    for url in urls:
        found += _remote(url)
    if not found and paths:
        raise InputError("inputs: got label maps that trtseg wrote, and no CT; give the CTs")
    if not found:
        raise ArgumentError("inputs: got none; expected the path of at least one CT")
    return found


def single(given: str | os.PathLike[str], place: str | None = None, series: str | None = None) -> Found:
    """Take an input as one CT, whatever is in it; ``place`` says where its labels go."""
    url = os.fspath(given) if is_url(given) else None
    source = path_in(url) if url else Path(given)
    if place is None:
        return Found(source, _labels(Path(_remote_stem(source) if url else stem(source))), url, series)
    labels = Path(place) if place.lower().endswith(WRITTEN) else Path(f"{place}.nii.gz")
    return Found(source, labels, url, series)


def _labels(place: Path) -> Path:
    """The file of the labels of a CT whose path without its ending is ``place``."""
    return place.with_name(f"{place.name}_seg.nii.gz")


def _matching(path: Path) -> list[Path]:
    """The paths that a pattern stands for; a path itself."""
    pattern = os.fspath(path)
    if not any(sign in pattern for sign in "*?[") or os.path.lexists(path):
        return [path]
    found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - absolute ones too
    if not found:
        raise InputError(f"{path}: no file or folder has a name of this pattern")
    return found


def _listed(name: str) -> list[tuple[str, str | None, str | None]]:
    """Input, output and series of each row of a list."""
    try:
        text = read_remote(name) if is_url(name) else Path(name).read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    except UnicodeError as error:
        raise InputError(f"{name}: is not UTF-8 text; save the list as CSV in UTF-8") from error
    table = csv.DictReader(io.StringIO(text, newline=""), restkey=_BEYOND, strict=True)
    try:
        return _rows(name, table)
    except csv.Error as error:
        raise InputError(
            f"{name}: is no CSV after line {table.line_num} ({error}); check its quotes"
        ) from error


def _rows(name: str, table: csv.DictReader[str]) -> list[tuple[str, str | None, str | None]]:
    columns = list(table.fieldnames or ())
    if "input" not in columns or set(columns) - set(_COLUMNS) or len(set(columns)) < len(columns):
        raise InputError(
            f"{name}: got the columns {columns}; expected input and, if wanted, output and series, each once, with "
            "commas between"
        )
    start = Path() if is_url(name) else Path(name).parent
    listed = []
    for row in table:
        if any(row.get(_BEYOND, ())):
            raise InputError(
                f"{name}: line {table.line_num} has more cells than there are columns; quote what holds a comma"
            )
        given, place, series = ((row.get(column) or "").strip() for column in _COLUMNS)
        if "\n" in given + place or "\r" in given + place:
            raise InputError(
                f"{name}: line {table.line_num} ends an input or output of several lines, {(given + place)[:40]!r}...; "
                "check its quotes"
            )
        if not given:
            raise InputError(f"{name}: line {table.line_num} has no input; give a path or a URL")
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise InputError(
                f"{name}: line {table.line_num} has the output {place}; expected a path in the folder of the results"
            )
        if place and (place.endswith("/") or PurePosixPath(place).name[:1] in ("", ".")):
            raise InputError(
                f"{name}: line {table.line_num} has the output {place}; expected the name of a file that is not "
                "hidden, in folders or not"
            )
        listed.append((given if is_url(given) else os.fspath(start / given), place or None, series or None))
    return listed


def _remote(url: str) -> list[Found]:
    """The CTs of a URL; those of a folder or a pattern keep the folders that they are in."""
    sources = [(path_in(one), one) for one in find_remote(url)]
    top = Path(os.path.commonpath([path.parent for path, _ in sources]))
    places = [path.relative_to(top).with_name(_remote_stem(path)) for path, _ in sources]
    return [Found(path, _labels(place), one) for place, (path, one) in zip(places, sources, strict=True)]


def _remote_stem(path: Path) -> str:
    """`stem` of a path in a store: the whole name where it has no ending of a CT's file, as folders named by UIDs."""
    return stem(path) if path.name.lower().endswith((*IMAGES, *DICOM, *ZIP)) else path.name


def _local(inputs: Sequence[Path], output: Path, left_out: list[Path]) -> list[Found]:
    """Find the CTs on this machine; ``left_out`` gets the label maps among them."""
    files = [path for path in inputs if not is_folder(path)]
    if len(inputs) > 1:
        made = dict.fromkeys(path for path in files if made_by(path) is not None)
        left_out += made
        files = one_of_each_series(path for path in files if path not in made)
    parents = [Path(os.path.abspath(path.parent)) for path in files]  # noqa: PTH100 - links stay
    is_unique = len({stem(path) for path in files}) == len(set(files))
    top = Path(os.path.commonpath(parents)) if parents else Path()
    places = {
        path: Path(stem(path)) if is_unique else parent.relative_to(top) / stem(path)
        for path, parent in zip(files, parents, strict=True)
    }
    found: list[Found] = []
    for path in inputs:
        if not is_folder(path):
            found += [Found(path, _labels(places[path]))] if path in places else []
            continue
        cts, labels = find_cts(path, output)
        if not cts and len(inputs) > 1 and os.path.realpath(path) == os.path.realpath(output):
            left_out += labels  # a shell's * is the folder of the results too, once it is there
            continue
        if labels and not cts:
            raise InputError(f"{path}: holds no CT, but {len(labels)} label maps; give the folder of the CTs")
        left_out += labels
        start = Path(stem(path)) if len(inputs) > 1 else Path()
        for ct in cts or [path]:  # reading a folder without CTs says what is wrong with it
            inside = Path(stem(path)) if ct == path else start / ct.relative_to(path).parent / stem(ct)
            found.append(Found(ct, _labels(inside)))
    return found
