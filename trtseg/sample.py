"""A CT to try trtseg on: a public CT, fetched once and cached, or a phantom, which needs no network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from trtseg.errors import InputError, OutputError
from trtseg.io.atomic import atomic
from trtseg.io.folders import cache_folder
from trtseg.phantom import Phantom

#: Origin of the CT, for people to read.
SOURCE = (
    "example CT of the source package TotalSegmentator 2.18.0 (Jakob Wasserthal and contributors, licence "
    "Apache-2.0): chest and abdomen, 233 x 167 x 191 voxels of 1.5 mm"
)
SHA256 = "372d98723e3283a8d4a0ae2f0ef1e581c0ad17b673b30b2e8d3e215180cc2a12"
FILE_NAME = "totalsegmentator-2.18.0-example_ct.nii.gz"

_PACKAGE = "totalsegmentator"
_REQUIREMENT = f"{_PACKAGE}==2.18.0"
_ARCHIVE_SHA256 = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
_MEMBER = "totalsegmentator-2.18.0/tests/reference_files/aorta_report/example_ct.nii.gz"
_MEMBER_BYTES = 10_507_950


def cached(cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the path of the public CT if the cache has an intact copy, else None."""
    path = (cache_folder() if cache_dir is None else Path(cache_dir)) / FILE_NAME
    try:
        return path if _sha256(path) == SHA256 else None
    except OSError:  # there is no such file, or it cannot be read
        return None


def fetch(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Get the public CT that `SOURCE` describes, from the cache or, once, through pip (38 MB).

    pip runs as a process of its own with the user's configuration, so mirrors and proxies that work for pip
    work here. pip verifies the SHA-256 of the archive before the archive is opened; the SHA-256 of the CT is
    verified on every call.

    Parameters
    ----------
    cache_dir : path, optional
        Folder to keep the file in, instead of `cache_folder`; it is created if it does not exist.

    Returns
    -------
    Path
        A NIfTI file.

    Raises
    ------
    InputError
        If the package cannot be downloaded, or does not hold the expected CT.
    OutputError
        If the cache folder cannot be written.

    Examples
    --------
    >>> import trtseg
    >>> trtseg.segment(fetch()).save("seg.nii.gz")  # doctest: +SKIP
    """
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    known = cached(folder)
    if known is not None:
        return known
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be created ({error}); set TRTSEG_CACHE to a folder of your own"
        ) from error
    target = folder / FILE_NAME
    try:
        with atomic(target) as (part,), tempfile.TemporaryDirectory(prefix="trtseg-") as scratch:
            _extract(_download(Path(scratch)), part)
    except OutputError as error:
        raise OutputError(f"{error}. Set TRTSEG_CACHE to a folder of your own") from error
    return target


def copy(path: Path, target: Path) -> Path:
    """Copy a file, completely or not at all; returns the target."""
    with contextlib.suppress(OSError):  # there is no target, or it cannot be seen: then `atomic` says why
        if target.samefile(path):
            return target
    with atomic(target) as (part,):
        shutil.copyfile(path, part)
    return target


def write_phantom(phantom: Phantom, ct: Path, labels: Path) -> None:
    """Write a phantom's CT and its truth as NIfTI files (``.nii`` or ``.nii.gz``), both or neither."""
    import nibabel as nib

    make: Any = nib.Nifti1Image
    with atomic(ct, labels) as parts:
        for array, part in zip((phantom.ct, phantom.labels), parts, strict=True):
            image: Any = make(array.transpose(2, 1, 0), phantom.affine)
            image.header.set_xyzt_units("mm")
            image.set_sform(phantom.affine, 1)
            image.set_qform(phantom.affine, 1)
            nib.save(image, part)


def _download(folder: Path) -> Path:
    """Have pip download the source package into ``folder``."""
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{_REQUIREMENT} --hash=sha256:{_ARCHIVE_SHA256}\n", encoding="ascii")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--no-deps", "--no-binary", _PACKAGE, "--dest", str(folder), "--requirement", str(wanted),
    ]  # fmt: skip
    # pip runs in an empty folder, because Python's option -m looks for modules in the current folder first.
    done = subprocess.run(  # noqa: S603 - all arguments are ours
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    archives = sorted(folder.glob("*.tar.gz"))
    if done.returncode != 0 or not archives:
        raise InputError(
            f"sample CT: pip could not download {_REQUIREMENT} ({_reason(done.stderr)}); {_INSTEAD}"
        )
    return archives[0]


_INSTEAD = "check the network and pip's configuration, or use 'trtseg sample --phantom', which needs none"


def _reason(output: str) -> str:
    """Return the last of pip's error messages, or else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR:").strip()


def _extract(archive: Path, target: Path) -> None:
    """Copy the CT, and no other file, out of the archive, and check its SHA-256."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            member = tar.getmember(_MEMBER)
            source = tar.extractfile(member) if member.isreg() and member.size == _MEMBER_BYTES else None
            if source is None:
                raise KeyError(_MEMBER)
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise InputError(
            f"sample CT: {archive.name} does not hold the CT it should ({error}); {_INSTEAD}"
        ) from error
    got = _sha256(target)
    if got != SHA256:
        raise InputError(f"sample CT: got a file with SHA-256 {got}, expected {SHA256}; {_INSTEAD}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
