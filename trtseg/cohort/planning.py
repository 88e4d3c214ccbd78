"""Which files are written for which CT of a cohort."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trtseg.cohort.case import Case
from trtseg.cohort.inputs import Found, find, single
from trtseg.cohort.remote import is_url
from trtseg.errors import ArgumentError
from trtseg.io import check_target
from trtseg.io.atomic import resolve_target
from trtseg.io.dicom_out import check_inputs, check_kinds, file_names
from trtseg.io.folders import check_writable, made_folder
from trtseg.io.names import INDEX, SEG, WRITTEN, is_folder, stem

_PathLike = str | os.PathLike[str]


@contextmanager
def plan(
    inputs: Sequence[_PathLike],
    output: _PathLike | None = None,
    *,
    report: bool = False,
    preview: bool = False,
    html: bool = False,
    series: str | None = None,
    dicom: Sequence[str] = (),
    left_out: list[Path] | None = None,
    overwrite: bool = False,
    name: str = "output",
) -> Iterator[tuple[Case, ...]]:
    """Decide which files are written, and find out now whether they can be.

    For several CTs, the folder ``output`` exists inside the ``with`` block. If `plan` created the folder and nothing
    was written to it, the folder is removed at the end of the block.

    Parameters
    ----------
    inputs : sequence of path or str
        The CTs: files, folders, patterns, lists and URLs, see `trtseg.cohort.inputs.find`. Whether CTs can be read is
        found out by `run`, since one bad CT must not stop the others. Of several files, label maps that trtseg wrote
        are left out, and DICOM files that lie beside an earlier one of their series.
    output : path, optional
        For one CT a file, ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha`` or ``.dcm``, or an existing folder. For several
        inputs a folder, created where needed; for the only CT of a folder, a pattern or a list either, a file or a
        folder. In a folder, labels are named ``<input>_seg.nii.gz``. CTs from folders keep the folders that they are
        in, and so do files if two of them have the same name. The default is the current folder.
    report, preview, html : bool
        Whether each case gets a report (``.json``), a preview (``.png``) and a page (``.html``) beside its labels.
    series : str, optional
        Series Instance UID of the DICOM series to take of the only input.
    dicom : sequence of str
        Kinds of DICOM objects, see `trtseg.result.Segmentation.save_dicom`: each case gets a folder
        ``<input>_dicom`` with them, instead of a file of labels.
    left_out : list, optional
        Gets the files that were taken for label maps, but for those that the cases will write.
    overwrite : bool
        For one CT, replace labels that trtseg did not write though nobody named them; for several, `run` asks.
    name : str
        How messages call ``output``.

    Yields
    ------
    tuple of Case
        The cases, in the order of ``inputs``.

    Raises
    ------
    ArgumentError
        If there is no input, ``output`` does not suit the number of inputs, an output is an input, two cases
        would be written to one file, or labels that trtseg did not write would be replaced.
    InputError
        If a folder holds no CT, or cannot be listed.
    OutputError
        If an output cannot be written.
    """
    folder = Path() if output is None else Path(output)
    is_file = folder.name.lower().endswith(WRITTEN) and not is_folder(folder)
    if isinstance(inputs, (str, os.PathLike)):
        raise ArgumentError(
            f"inputs: got {os.fspath(inputs)!r}; expected a list of paths, as [{os.fspath(inputs)!r}]"
        )
    if series is not None and len(inputs) != 1:
        raise ArgumentError(
            f"series: got one for {len(inputs)} inputs; expected one input, a folder or a zip"
        )
    kinds = check_kinds(dicom, "dicom") if dicom else ()
    if is_file and kinds:
        raise ArgumentError(f"{name}: got the file {folder} for several DICOM objects; expected a folder")
    labels_there: list[Path] = []
    found = find(inputs, folder, labels_there) if series is None else [single(inputs[0], series=series)]
    if is_file and len(found) > 1:
        sources = [str(one.source) for one in found[:3]] + ["..."] * (len(found) > 3)
        got = f"{len(found)} inputs ({', '.join(sources)})"
        raise ArgumentError(f"{name}: got the file {folder} for {got}; expected a folder, or one input")
    if kinds or folder.name.lower().endswith(SEG):
        check_inputs([one.source for one in found if one.url is None], name)
    several = not is_file and (not is_alone(found, inputs) or bool(kinds))
    names = [one.objects(file_names(kinds)[0][1]) if kinds else one.labels for one in found]
    labels = [folder / file for file in names] if several else [file_in(folder, names[0].name, name=name)]
    check_target(labels[0])
    cases = tuple(
        Case(
            one.source,
            target,
            target.with_name(f"{stem(target)}.json") if report else None,
            target.with_name(f"{stem(target)}.png") if preview else None,
            target.with_name(f"{stem(target)}.html") if html else None,
            one.series,
            kinds,
            one.url,
            is_file,
        )
        for one, target in zip(found, labels, strict=True)
    )
    if left_out is not None:
        own = {os.path.abspath(path) for case in cases for path in case.outputs}  # noqa: PTH100 - links stay
        left_out += [path for path in labels_there if os.path.abspath(path) not in own]  # noqa: PTH100
    folders = dict.fromkeys(path.parent for path in labels)
    with ExitStack() as made:
        for path in (folder, *folders) if several else ():
            made.enter_context(made_folder(path, name))
        _check_targets(cases, folder / INDEX if several else None, name)
        for path in folders:
            check_writable(path, name)
        if not several and not overwrite:  # of several, the manifest tells
            cases[0].check_own(f"name the file with {name}, or choose another folder")
        yield cases


def is_alone(found: Sequence[Found | Case], inputs: Sequence[_PathLike]) -> bool:
    """Tell whether the only CT is the only input itself.

    It is not where it is that of a folder, a pattern or a list, or the other inputs are label maps.
    """
    if len(found) != 1 or len(inputs) != 1:
        return False
    one, given = found[0], inputs[0]
    return one.url == given if is_url(given) else one.source == Path(given)


def file_in(
    output: Path, file_name: str, *, name: str = "output", endings: tuple[str, ...] = WRITTEN
) -> Path:
    """Path to write: ``output`` itself if its name has one of the endings, ``file_name`` in it if it is a folder.

    An ArgumentError, which calls ``output`` by ``name``, says that it is neither.
    """
    if is_folder(output):
        return output / file_name
    if not output.name.lower().endswith(endings):
        known = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise ArgumentError(
            f"{name}: got {output}; expected a name ending in {known}, or a folder that exists"
        )
    return output


def _check_targets(cases: Sequence[Case], index: Path | None, name: str) -> None:
    """Refuse outputs that would replace an input, the output of another case or the page of all."""
    sources = {os.path.realpath(case.source): case.source for case in cases if case.url is None}
    claimed = {} if index is None else {os.fspath(resolve_target(index)): "the page of all cases"}
    for case in cases:
        for output in case.outputs:
            target = os.fspath(resolve_target(output))
            if target in sources:
                raise ArgumentError(f"{name}: {output} is the input {sources[target]}; choose another name")
            if target in claimed:
                raise ArgumentError(
                    f"inputs: {claimed[target]} and {case.input} would both be written to {output}; "
                    "rename one, or segment them into different folders"
                )
            claimed[target] = case.input
