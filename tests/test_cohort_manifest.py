"""The manifest of a cohort: what is complete after a kill, what is done again, and what is not replaced."""

import csv
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import dicom_made
import pytest
from cohort_cases import planned

import trtseg
from trtseg import cohort
from trtseg.cohort.manifest import Manifest
from trtseg.cohort.remote import look
from trtseg.errors import ArgumentError, InputError, OutputError
from trtseg.io.csv_file import write_csv
from trtseg.labels.postprocess import PostProcess
from trtseg.phantom import abdomen
from trtseg.sample import write_phantom


@pytest.fixture(scope="module")
def cts(tmp_path_factory):
    """Three CTs of three shapes."""
    folder = tmp_path_factory.mktemp("cts")
    paths = [folder / f"ct{n}.nii.gz" for n in range(3)]
    for n, path in enumerate(paths):
        write_phantom(abdomen((12 + n, 64, 64), (20.0, 6.0, 6.0)), path, folder / "truth.nii.gz")
    return paths


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


KILLED = """
import os, sys
from pathlib import Path
from trtseg.cohort import Case
from trtseg.cohort import manifest
point, n = sys.argv[1], 0
def end(*_):
    os._exit(9)
case = Case(Path("ct.nii"), Path("out/a_seg.nii.gz"), Path("out/a_seg.json"))
def second(*arguments, real=Path.replace):
    global n
    n += 1
    return end() if n == 2 else real(*arguments)
if point == "before the line": os.write = end
if point == "after the line": Path.replace = end
if point == "between two files": Path.replace = second
if point == "in the line": os.write = lambda file, data, real=os.write: (real(file, data[:-9]), end())
with manifest.Manifest(Path("out")) as book:
    staged = book.stage()
    for path in case.outputs:
        (staged / path.name).write_text(path.name)
    book.finish(case, manifest.look(case), "made", staged, {"liver_ml": 7.0})
"""


@pytest.mark.parametrize(
    ("point", "is_done"),
    [
        ("before the line", False),
        ("in the line", False),
        ("after the line", True),
        ("between two files", True),
    ],
)
def test_a_case_is_done_from_its_line_on(tmp_path, monkeypatch, point, is_done):
    monkeypatch.chdir(tmp_path)
    Path("ct.nii").write_text("CT")
    Path("out").mkdir()
    ended = subprocess.run([sys.executable, "-c", KILLED, point], check=False)
    assert ended.returncode == 9
    case = cohort.Case(Path("ct.nii"), Path("out/a_seg.nii.gz"), Path("out/a_seg.json"))
    for _ in range(2):
        with Manifest(Path("out")) as manifest:
            assert manifest.is_done(case, "made") == is_done
            assert not manifest.is_done(case, "made by another model")
    files = (
        {"a_seg.nii.gz", "a_seg.json", "cohort.csv", "cohort.jsonl"} if is_done else set(os.listdir("out"))
    )
    assert set(os.listdir("out")) == files
    assert not any(name.startswith((".", "a_seg")) for name in os.listdir("out")) or is_done
    with Manifest(Path("out")) as manifest:
        staged = manifest.stage()
        for path in case.outputs:
            (staged / path.name).write_text(path.name)
        manifest.finish(case, look(case), "made", staged, {"liver_ml": 8.0})
    assert Path("out/a_seg.json").read_text() == "a_seg.json"
    assert Path("out/cohort.csv").read_text().count("8.0") == 1


def test_one_process_at_a_time_writes_into_a_folder(tmp_path):
    with (
        Manifest(tmp_path),
        pytest.raises(OutputError, match="another trtseg writes there"),
        Manifest(tmp_path),
    ):
        pass
    (tmp_path / "cohort.jsonl").write_text('{"trtseg cohort": 2}\n')
    with pytest.raises(OutputError, match="another version"), Manifest(tmp_path):
        pass


# --- what is done again


def test_a_changed_ct_option_or_file_is_noticed(cts, model, out):
    mine = [Path(shutil.copy(ct, out.parent)) for ct in cts]

    def done(segmenter, cases, **options):
        outcomes = list(cohort.run(cases, segmenter, folder=out, **options))
        assert [outcome.error for outcome in outcomes] == [None] * 3
        assert all(outcome.row["liver_ml"] > 0 for outcome in outcomes)
        return sorted(outcome.case.source.name for outcome in outcomes if not outcome.is_old)

    plain, paged = planned(mine, out), planned(mine, out, html=True)
    names = [ct.name for ct in mine]
    with trtseg.Segmenter(model) as segmenter:
        assert done(segmenter, plain) == names
        assert done(segmenter, plain) == []
        os.utime(mine[0], ns=(1, 1))
        assert done(segmenter, plain) == names[:1]
        (out / "ct1_seg.nii.gz").unlink()
        assert done(segmenter, plain) == names[1:2]
        assert done(segmenter, paged) == names
        assert done(segmenter, plain) == [], "what is there besides is no harm"
        assert done(segmenter, paged, keep_identity=True) == names
        assert done(segmenter, plain, orientation="RAS") == names
        assert done(segmenter, plain, orientation="RAS", overwrite=True) == names
    with trtseg.Segmenter(model, postprocess=PostProcess(min_tumour_ml=1)) as segmenter:
        assert done(segmenter, plain) == names


def run_all(segmenter, cases, out, **options):
    outcomes = list(cohort.run(cases, segmenter, folder=out, **options))
    assert [outcome.error for outcome in outcomes] == [None] * len(cases)
    return outcomes


def states(out):
    with (out / "cohort.csv").open() as file:
        return [row["state"] for row in csv.DictReader(file)]


def test_results_that_are_done_again_keep_their_permissions(cts, model, out):
    cases = planned(cts, out)
    labels = out / "ct1_seg.nii.gz"
    with trtseg.Segmenter(model) as segmenter:
        run_all(segmenter, cases, out)
        labels.chmod(0o600)
        run_all(segmenter, cases, out, overwrite=True)
    assert stat.S_IMODE(labels.stat().st_mode) == 0o600


def test_files_that_somebody_changed_are_left_alone_and_told(cts, model, out):
    cases = planned(cts, out, report=True)
    labels = out / "ct1_seg.nii.gz"
    with (
        trtseg.Segmenter(model) as segmenter,
        trtseg.Segmenter(model, postprocess=PostProcess(min_tumour_ml=1)) as other,
    ):
        run_all(segmenter, cases, out)
        for path in (out / "ct0_seg.nii.gz", labels):
            os.utime(path, ns=(1, 1))  # as a copy has it
        assert [one.changed for one in run_all(segmenter, cases, out)] == [None] * 3
        data = bytearray(labels.read_bytes())
        data[-9] ^= 1  # of one size
        labels.write_bytes(data)
        (out / "ct1_seg.json").unlink()
        for current in (segmenter, other, segmenter):
            outcomes = run_all(current, cases, out)
            told = [one.case.source.name for one in outcomes if one.changed == labels and one.is_old]
            assert told == ["ct1.nii.gz"]
            assert sum(one.changed is not None for one in outcomes) == 1
            assert labels.read_bytes() == data
            assert states(out) == ["done", "changed", "done"]
        assert [one.is_old for one in run_all(segmenter, cases, out, overwrite=True)] == [False] * 3
        assert labels.read_bytes() != data
        assert states(out) == ["done"] * 3
        labels.write_bytes(b"")  # holds nothing that could be lost
        assert [one.case.source.name for one in run_all(segmenter, cases, out) if not one.is_old] == [
            "ct1.nii.gz"
        ]


def test_what_is_left_of_other_options_goes_with_its_labels(cts, model, out):
    with (
        trtseg.Segmenter(model) as segmenter,
        trtseg.Segmenter(model, postprocess=PostProcess(min_tumour_ml=1)) as other,
    ):
        run_all(segmenter, planned(cts[:1], out, report=True), out)
        (out / "ct0_seg.png").write_text("not of trtseg")
        run_all(segmenter, planned(cts[:1], out, html=True), out)
        assert {"ct0_seg.json", "ct0_seg.html"} <= set(os.listdir(out)), "of the very same labels"
        run_all(other, planned(cts[:1], out), out)
    assert set(os.listdir(out)) == {"ct0_seg.nii.gz", "ct0_seg.png", "cohort.csv", "cohort.jsonl"}


def test_labels_that_others_wrote_are_not_replaced_without_being_named(cts, model, out):
    out.mkdir()
    mine = out / "ct0_seg.nii.gz"
    shutil.copy(cts[0], mine)  # a file that trtseg did not write
    data = mine.read_bytes()
    with trtseg.Segmenter(model) as segmenter:
        with pytest.raises(
            ArgumentError, match=r"ct0_seg\.nii\.gz is there, and trtseg did not write it; .*over"
        ):
            list(cohort.run(planned(cts, out), segmenter, folder=out))
        with (
            pytest.raises(ArgumentError, match="name the file with output, or choose"),
            cohort.plan(cts[:1], out),
        ):
            pass
        with cohort.plan(cts[:1], out, overwrite=True):
            pass
        assert mine.read_bytes() == data
        assert os.listdir(out) == [mine.name]
        run_all(segmenter, planned(cts, out), out, overwrite=True)
        assert mine.read_bytes() != data
    with cohort.plan(cts[:1], out) as (case,):  # labels of trtseg
        assert case.labels == mine
    with cohort.plan(cts[:1], cts[0].parent / "truth.nii.gz") as named, Manifest(cts[0].parent) as manifest:
        manifest.check_inputs(named)
    mine.write_bytes(b"")
    with cohort.plan(cts[:1], out):  # nothing that could be lost
        pass


def test_segmentations_that_others_wrote_are_not_replaced(model, out):
    folder = dicom_made.save_series(out.parent / "p1", abdomen((12, 64, 64), (20.0, 6.0, 6.0)).ct, 20.0)
    (out / "p1_dicom").mkdir(parents=True)
    theirs = Path(shutil.copy(min(folder.iterdir()), out / "p1_dicom" / "seg.dcm"))
    with trtseg.Segmenter(model) as segmenter:
        with pytest.raises(ArgumentError, match=r"p1_dicom/seg\.dcm is there, and trtseg did not write it"):
            list(cohort.run(planned([folder], out, dicom=("seg",)), segmenter, folder=out))
        theirs.unlink()
        for kinds in (("seg", "sc"), ("sc",), ("seg", "sc"), ("sc",), ("seg",)):
            (outcome,) = run_all(segmenter, planned([folder], out, dicom=kinds), out)
            assert outcome.changed is None, "the pictures are those of another line, but of trtseg"
        theirs.write_bytes(theirs.read_bytes() + b"more")
        (outcome,) = run_all(segmenter, planned([folder], out, dicom=("seg", "sc")), out)
        assert outcome.changed == theirs


def test_corrected_labels_of_an_earlier_version_of_the_manifest_stay(cts, model, out):
    with (
        trtseg.Segmenter(model) as segmenter,
        trtseg.Segmenter(model, postprocess=PostProcess(min_tumour_ml=1)) as other,
    ):
        run_all(segmenter, planned(cts, out, report=True), out)
        lines = (out / "cohort.jsonl").read_text().splitlines()
        records = [{k: v for k, v in json.loads(line).items() if k != "written"} for line in lines]
        (out / "cohort.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        larger, same_size = out / "ct0_seg.nii.gz", out / "ct1_seg.nii.gz"
        larger.write_bytes(larger.read_bytes() + b"more")
        same_size.write_bytes(os.urandom(same_size.stat().st_size))
        told = [one.changed for one in run_all(other, planned(cts, out), out)]
    assert sorted(path.name for path in told if path) == ["ct0_seg.nii.gz", "ct1_seg.nii.gz"]
    assert not (out / "ct2_seg.json").exists()


def test_a_rename_that_fails_is_made_up_for(cts, model, out, monkeypatch):
    cases = planned(cts[:1], out, report=True)
    with (
        trtseg.Segmenter(model) as segmenter,
        trtseg.Segmenter(model, postprocess=PostProcess(min_tumour_ml=1)) as other,
    ):
        run_all(segmenter, cases, out)
        before = (out / "ct0_seg.json").read_text()

        def broken(path, target, real=Path.replace):
            if target.name == "ct0_seg.nii.gz":
                raise OSError(5, "Input/output error")
            return real(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", broken)
            (outcome,) = cohort.run(cases, other, folder=out)
        assert isinstance(outcome.error, OutputError)
        assert states(out) == ["failed"]
        (again,) = run_all(other, cases, out)
    assert (again.changed, again.is_old) == (None, False)
    assert states(out) == ["done"]
    assert (out / "ct0_seg.json").read_text() != before


def test_what_is_corrected_meanwhile_or_after_a_failure_stays_and_overwrite_ends_it(cts, model, out):
    mine = [Path(shutil.copy(ct, out.parent)) for ct in cts[:2]]
    cases = planned(mine, out)
    labels = out / "ct1_seg.nii.gz"
    with (
        trtseg.Segmenter(model) as segmenter,
        trtseg.Segmenter(model, postprocess=PostProcess(min_tumour_ml=1)) as other,
    ):
        run_all(segmenter, planned(mine, out, report=True), out)
        original = labels.read_bytes()
        outcomes = cohort.run(
            cases,
            cohort.Workers(
                1, options={"model": model, "precision": "fp32", "postprocess": PostProcess(min_tumour_ml=2)}
            ),
            folder=out,
        )
        first = next(outcomes)
        theirs = out / f"ct{1 - cases.index(first.case)}_seg.nii.gz"
        theirs.write_bytes(original + b"corrected")
        (second,) = outcomes
        assert re.search("was changed by somebody while the case was done", str(second.error))
        assert theirs.read_bytes() == original + b"corrected"
        assert sorted(states(out)) == ["changed", "done"], "with the numbers of before"
        run_all(segmenter, cases, out, overwrite=True)
        report = out / "ct1_seg.json"
        run_all(segmenter, planned(mine, out, report=True), out)
        report.write_text("edited")
        assert [one.changed for one in run_all(segmenter, cases, out)].count(report) == 1
        assert states(out) == ["done", "changed"]
        run_all(segmenter, cases, out, overwrite=True)
        assert [one.changed for one in run_all(segmenter, cases, out)] == [None] * 2
        assert report.read_text() == "edited"
        original, whole = labels.read_bytes(), mine[1].read_bytes()
        mine[1].write_text("no CT")
        assert [one.error is None for one in cohort.run(cases, segmenter, folder=out)] == [True, False]
        mine[1].write_bytes(whole)
        labels.write_bytes(original + b"corrected")
        (old,) = (one for one in run_all(other, cases, out) if one.changed)
        assert old.row["liver_ml"] > 0
        assert states(out) == ["done", "changed"]
        labels.write_bytes(original)
        run_all(segmenter, cases, out)
        assert states(out) == ["done", "done"]


def test_pages_with_a_name_are_of_the_same_labels(cts, model, out):
    with trtseg.Segmenter(model) as segmenter:
        run_all(segmenter, planned(cts[:1], out, report=True), out)
        run_all(segmenter, planned(cts[:1], out, html=True), out, keep_identity=True)
    assert (out / "ct0_seg.json").exists()


@pytest.mark.parametrize("line", ["5", "[]", '{"case": "ct0_seg.nii.gz"}', '{"case": "a", "state": "done"}'])
def test_a_line_that_is_none_of_the_manifest_is_passed_over(cts, model, out, line):
    with trtseg.Segmenter(model) as segmenter:
        run_all(segmenter, planned(cts[:1], out), out)
        with (out / "cohort.jsonl").open("a") as file:
            file.write(f"{line}\n")
        assert [one.is_old for one in run_all(segmenter, planned(cts[:1], out), out)] == [True]


def test_slices_that_arrive_later_are_noticed(model, out):
    ct = abdomen((12, 64, 64), (20.0, 6.0, 6.0)).ct
    early, all_of_it = (
        dicom_made.save_series(out.parent / name, ct[:n], 20.0) for name, n in (("cts", 6), ("all", 12))
    )
    first = min(early.iterdir())
    cases = planned([first], out)
    with trtseg.Segmenter(model) as segmenter:
        found = [one for _ in range(2) for one in cohort.run(cases, segmenter, folder=out)]
        for file in all_of_it.iterdir():
            shutil.copy(file, early)
        found += [one for _ in range(2) for one in cohort.run(cases, segmenter, folder=out)]
    assert [one.is_old for one in found] == [False, True, False, True]
    assert found[2].row["liver_ml"] > found[0].row["liver_ml"]


def test_a_ct_is_the_same_however_its_path_is_typed(tmp_path, monkeypatch):
    """Relative now and absolute later, as from a shell and then from a scheduler."""
    monkeypatch.chdir(tmp_path)
    ct = abdomen((3, 64, 64), (20.0, 6.0, 6.0)).ct
    folder = dicom_made.save_series(tmp_path / "cts", ct, 20.0)
    for name in ("cts", f"cts/{min(folder.iterdir()).name}"):
        typed = (Path(name), Path(f"./{name}"), tmp_path / name, Path(f"../{tmp_path.name}/{name}"))
        seen = {look(cohort.Case(path, Path("out/a_seg.nii.gz"))) for path in typed}
        assert len(seen) == 1
        assert "" not in seen


def two_cts_of_one_name(cts, folder):
    for name, ct in zip("ab", cts[:2], strict=True):
        (folder / name).mkdir()
        shutil.copy(ct, folder / name / "ct.nii.gz")


def test_results_of_another_ct_are_not_replaced(cts, model, out):
    two_cts_of_one_name(cts, out.parent)
    with trtseg.Segmenter(model) as segmenter:
        (one,) = cohort.run(planned([out.parent / "a/ct.nii.gz"], out), segmenter, folder=out)
        labels = one.case.labels.read_bytes()
        other = planned([out.parent / "b/ct.nii.gz"], out)
        with pytest.raises(
            ArgumentError, match=r"ct_seg\.nii\.gz holds the labels of .*a/ct\.nii\.gz, and those of"
        ):
            list(cohort.run(other, segmenter, folder=out))
        assert one.case.labels.read_bytes() == labels
        (same,) = cohort.run(planned([out.parent / "a/ct.nii.gz"], out), segmenter, folder=out)
        assert same.is_old
        (out.parent / "a/ct.nii.gz").rename(out.parent / "moved.nii.gz")
        (new,) = cohort.run(other, segmenter, folder=out)
        assert (new.error, new.is_old) == (None, False)
        (out.parent / "moved.nii.gz").rename(out.parent / "a/ct.nii.gz")
        (again,) = cohort.run(
            planned([out.parent / "a/ct.nii.gz"], out), segmenter, folder=out, overwrite=True
        )
        assert again.case.labels.read_bytes() == labels


def test_a_command_in_another_folder_does_not_replace_results_of_a_ct_of_the_same_path(
    cts, model, out, monkeypatch
):
    out.mkdir()
    two_cts_of_one_name(cts, out.parent)
    with trtseg.Segmenter(model) as segmenter:
        monkeypatch.chdir(out.parent / "a")
        (one,) = cohort.run(planned(["ct.nii.gz"], out), segmenter, folder=out)
        labels = one.case.labels.read_bytes()
        monkeypatch.chdir(out.parent / "b")
        with pytest.raises(ArgumentError, match=r"holds the labels of .*/a/ct\.nii\.gz, and those of ct\."):
            list(cohort.run(planned(["ct.nii.gz"], out), segmenter, folder=out))
    assert one.case.labels.read_bytes() == labels


def test_a_case_that_failed_later_keeps_its_labels_from_another_ct(cts, model, out):
    two_cts_of_one_name(cts, out.parent)
    with trtseg.Segmenter(model) as segmenter:
        (one,) = cohort.run(planned([out.parent / "a/ct.nii.gz"], out), segmenter, folder=out)
        labels = one.case.labels.read_bytes()
        (out.parent / "a/ct.nii.gz").write_text("text")
        (bad,) = cohort.run(planned([out.parent / "a/ct.nii.gz"], out), segmenter, folder=out)
        assert isinstance(bad.error, InputError)
        with pytest.raises(ArgumentError, match=r"holds the labels of .*/a/ct\.nii\.gz"):
            list(cohort.run(planned([out.parent / "b/ct.nii.gz"], out), segmenter, folder=out))
    assert one.case.labels.read_bytes() == labels


@pytest.mark.parametrize("jobs", [None, 1])
def test_a_full_disk_is_said_of_the_file_that_the_case_was_to_have(cts, model, out, jobs):
    cases = planned([cts[0]], out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        workers = trtseg.Segmenter(model) if jobs is None else cohort.Workers(jobs, options={"model": model})
        (one,) = cohort.run(cases, workers, folder=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(one.error, OutputError)
    assert str(one.error).startswith(f"{out / 'ct0_seg.nii.gz'}: no space left")
    assert os.listdir(out) == []


def test_what_failed_is_in_the_table_and_is_tried_again(cts, model, out):
    good, bad = shutil.copy(cts[0], out.parent), out.parent / "=bad.nii.gz"
    bad.write_text("text")
    cases = planned([good, bad], out)
    with trtseg.Segmenter(model) as segmenter:
        for _ in range(2):
            outcomes = {o.case.source.name: o for o in cohort.run(cases, segmenter, folder=out)}
            assert isinstance(outcomes["=bad.nii.gz"].error, InputError)
            with (out / "cohort.csv").open() as file:
                (bad_row, good_row) = csv.DictReader(file)
            assert (bad_row["case"], bad_row["state"], bad_row["liver_ml"]) == ("'=bad", "failed", "")
            assert "InputError: " in bad_row["error"]
            assert good_row["state"] == "done"
        assert outcomes["ct0.nii.gz"].is_old
        shutil.copy(good, bad)
        assert [o.is_old for o in cohort.run(cases, segmenter, folder=out)] == [True, False]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1", "\n=1+1"])
def test_no_text_of_a_table_is_a_formula_of_a_spreadsheet(tmp_path, text):
    write_csv(tmp_path / "a.csv", [["case", "ml"], [text, -1.5]])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [*csv.reader(file)] == [["case", "ml"], [f"'{text}", "-1.5"]]
