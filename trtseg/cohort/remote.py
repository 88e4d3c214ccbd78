"""CTs in stores that fsspec knows (``s3://``, ``gs://``, ``https://``, ``zip://``, ...): found, fetched, told apart."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from trtseg.cohort.case import Case
from trtseg.errors import InputError, TrtsegError
from trtseg.io.names import DICOM, IMAGES, says_labels, stem
from trtseg.io.parts import files_of

# What changes with a file; each store has its own names. fsspec's `ukey` also stands for what is new each time.
_CHANGING = {
    "size", "etag", "mtime", "last_modified", "lastmodified", "last-modified", "updated", "generation",
    "created", "date_time", "crc", "md5", "md5hash", "content_md5", "version_id", "versionid",
}  # fmt: skip
_WEB = ("http", "https")


def is_url(text: object) -> bool:
    """Tell whether an input is a URL, and no path."""
    return isinstance(text, str) and "://" in text


def find_remote(url: str) -> list[str]:
    """Find the CTs that a URL stands for: a file, a pattern with ``*``, or a folder with CTs in it and below it.

    In folders, image files whose names do not say that they are labels are CTs, and so is each folder with files whose
    names DICOM files may have: without an ending, or with one of theirs or a number, as UIDs have.

    Raises
    ------
    InputError
        If there is none, or the store cannot be read.
    """
    with _store(url) as (store, path):
        name = path.partition("?")[0] if is_url(path) else path  # of the web, whose stores take whole URLs
        if any(sign in name for sign in "*?["):
            found = [name for name in store.glob(path) if not says_labels(Path(name))]
        elif store.isdir(path):
            found = _cts(path, store.find(path))
        else:
            found = [path]
        if not found:
            raise InputError(f"{url}: holds no CT; give a file, or a folder or a pattern of CTs")
        _check_names(url, path, found)
        return [_with_path(url, path, name) for name in sorted(found)]


def is_there(source: str) -> bool:
    """Tell whether a path or a URL leads to something; False where that cannot be known."""
    if not is_url(source):
        return os.path.exists(source)  # noqa: PTH110 - Path.exists raises where it may not look
    try:
        with _store(source) as (store, path):
            return bool(store.exists(path))
    except InputError:
        return False


def read_remote(url: str) -> str:
    """Read a text file."""
    with _store(url) as (store, path):
        return str(store.cat_file(path).decode("utf-8-sig"))


def path_in(url: str) -> Path:
    """The path of a URL inside its store, without what stands before and behind; on the web ``?`` begins a query.

    A whole store is named like the file that it is in, or else by its scheme.
    """
    first, _, rest = url.partition("::")
    scheme, _, path = first.partition("://")
    inside = Path(path.partition("?")[0] if scheme in _WEB else path)
    if inside.name:
        return inside
    return Path(stem(path_in(rest)) if rest else scheme)


@contextmanager
def fetched(case: Case) -> Iterator[Path]:
    """Have the CT of a case as a local file or folder: itself, or a copy for the time of the ``with`` block.

    The block's errors name the URL instead of the copy.
    """
    if case.url is None:
        yield case.source
        return
    with tempfile.TemporaryDirectory(prefix="trtseg-") as folder:
        local = Path(folder, case.source.name)
        with _store(case.url) as (store, path):
            if store.isdir(path):
                _check_names(case.url, path, store.find(path))
                store.get(path.rstrip("/") + "/", f"{local}/", recursive=True)
            else:
                store.get_file(path, str(local))
        try:
            yield local
        except TrtsegError as error:
            error.args = (str(error).replace(str(local), case.url), *error.args[1:])
            raise


def look(case: Case) -> str:
    """Stand for the CT of a case: where its files lie, how large they are and when they were changed.

    "" if the CT cannot be looked at; reading it says why.
    """
    facts: list[Any] = [case.series]
    try:
        if case.url is not None:
            with _store(case.url) as (store, path):
                infos = store.find(path, detail=True) if store.isdir(path) else {path: store.info(path)}
                facts += [case.url, [(name, _changed(infos[name])) for name in sorted(infos)]]
        else:
            absolute = os.path.abspath  # however the path was typed; links stay
            own = {absolute(output) for output in case.outputs}  # may be DICOM beside DICOM
            stamps = {absolute(path): _stamp(path.stat()) for path in files_of(case.source)}
            facts += [
                absolute(case.source),
                [(path, stamps[path]) for path in sorted(stamps) if path not in own],
            ]
    except (OSError, InputError):
        return ""
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _changed(info: Mapping[str, Any]) -> list[str]:
    """What a store says of a file that is another when the file changes."""
    return [str(value) for key, value in sorted(info.items()) if key.lower() in _CHANGING]


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _cts(top: str, names: list[str]) -> list[str]:
    """Files and folders of a folder that are CTs."""
    images, folders = [], dict[str, None]()
    for name in names:
        # Some stores have a "/" before all names.
        inside = PurePosixPath("/", name).relative_to(PurePosixPath("/", top))
        if any(part.startswith(".") for part in inside.parts):
            continue
        if name.lower().endswith(IMAGES):
            images += [] if says_labels(Path(name)) else [name]
        elif _may_be_dicom(PurePosixPath(name)):
            folders[str(PurePosixPath(name).parent) if len(inside.parts) > 1 else top] = None
    return images + list(folders)


def _check_names(url: str, path: str, names: list[str]) -> None:
    """Refuse names that lead up: results keep the folders of their CTs, and copies have the names of all files."""
    for name in names:
        if name != path and ".." in PurePosixPath(name).parts:
            raise InputError(
                f"{url}: holds {name!r}; expected names without '..', unpack it, and look at what is in it"
            )


def _may_be_dicom(path: PurePosixPath) -> bool:
    ending = path.suffix.lower()
    return path.name.upper() != "DICOMDIR" and (ending in ("", *DICOM) or ending[1:].isdecimal())


def _with_path(url: str, path: str, name: str) -> str:
    """The URL of another file of the same store, whose path ``url`` has as ``path``."""
    first, chain, rest = url.partition("::")
    scheme, _, _ = first.partition("://")
    if name == path:
        return url
    full = name if scheme in _WEB else f"{scheme}://{name}"
    return f"{full}{chain}{rest}"


@contextmanager
def _store(url: str) -> Iterator[tuple[Any, str]]:
    """The store of a URL and the path there; whatever fails is an InputError that names the URL."""
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"{url}: fsspec is needed to read it; pip install 'trtseg[cohort]'") from error
    try:
        yield fsspec.core.url_to_fs(url)
    except TrtsegError:
        raise
    except ImportError as error:  # the package of that store
        raise InputError(f"{url}: {error}") from error
    except Exception as error:  # each store has errors of its own
        raise InputError(f"{url}: cannot be read ({type(error).__name__}: {error})") from error
