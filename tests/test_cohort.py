"""Several CTs through one Segmenter: which files are planned, what runs side by side, and what a failure stops."""

import json
import os
import shutil
import threading
import weakref
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_made import save_series
from tiny import cascade_model

import trtseg
from trtseg import cohort
from trtseg.cohort import Case
from trtseg.cohort.tasks import Bench, Setup, Task
from trtseg.errors import ArgumentError, InputError, OutputError
from trtseg.io import load
from trtseg.result import Segmentation

SECONDS = 20  # that a thread may take to get somewhere, on a busy machine


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cases(phantom_ct):
    """Four cases of one CT each, to be written into a folder that exists."""
    names = "abcd"
    for name in names:
        shutil.copy(phantom_ct, f"{name}.nii.gz")
    Path("out").mkdir()
    return [Case(Path(f"{name}.nii.gz"), Path(f"out/{name}.nii.gz")) for name in names]


class Bright:
    """Plays a Segmenter: liver is what lies above 60 HU."""

    def segment(self, volume, *, orientation=None, progress):
        self.orientation = orientation
        progress("segmenting", 0.5)
        result = Segmentation.measure((volume.array > 60).astype(np.uint8), volume)
        progress("segmenting", 1.0)
        return result


# --- plan


def planned(inputs, output=None, **options):
    with cohort.plan(inputs, output, **options) as cases:
        return cases


def test_one_input_is_written_to_a_file_or_into_a_folder():
    Path("out").mkdir()
    ct = Path("in/1.2.840.nii.gz")
    assert planned(["in/1.2.840.nii.gz"]) == (Case(ct, Path("1.2.840_seg.nii.gz")),)
    assert planned([ct], "out") == (Case(ct, Path("out/1.2.840_seg.nii.gz")),)
    assert planned([ct], "out/a.b.nii", report=True, preview=True) == (
        Case(ct, Path("out/a.b.nii"), Path("out/a.b.json"), Path("out/a.b.png"), is_named=True),
    )


def test_several_inputs_go_into_a_folder_that_stays_if_it_is_used():
    with cohort.plan(["x/a.nii", "y/b.NII.GZ"], "new/out", report=True) as cases:
        assert [case.outputs for case in cases] == [
            (Path("new/out/a_seg.nii.gz"), Path("new/out/a_seg.json")),
            (Path("new/out/b_seg.nii.gz"), Path("new/out/b_seg.json")),
        ]
        assert Path("new/out").is_dir()
    assert os.listdir() == []
    with cohort.plan(["a.nii", "b.nii"], "new/out") as cases:
        cases[1].labels.write_text("labels")
    assert os.listdir("new/out") == ["b_seg.nii.gz"]


@pytest.mark.parametrize(
    ("inputs", "output", "error", "message"),
    [
        ([], None, ArgumentError, "inputs: got none"),
        (
            ["a.nii"],
            "out.hdr",
            ArgumentError,
            "output: got out.hdr; expected a name ending in .nii.gz, .nii, ",
        ),
        (
            ["a.nii"],
            "missing",
            ArgumentError,
            "output: got missing; expected a name ending in .nii.gz, .nii, ",
        ),
        (
            ["a.nii", "b.nii"],
            "both.nii.gz",
            ArgumentError,
            "got the file both.nii.gz for 2 inputs (a.nii, b.nii); expected",
        ),
        (["a.nii"], "missing/out.nii.gz", OutputError, "does not exist; create it first"),
        (["a.nii"], "file/out.nii.gz", OutputError, "cannot be written"),
        (["a.nii"], "out", OutputError, "out/a_seg.nii.gz: is a folder"),
        (["a.nii"], "loop/out.nii.gz", OutputError, "Too many levels of symbolic links"),
        (["a.nii"], "n" * 249 + ".nii.gz", OutputError, "the name is too long to write it; choose a"),
        (["n" * 248 + ".nii.gz", "b.nii"], "new/out", OutputError, "the name is too long"),
        (["a.nii", "b.nii"], "file", OutputError, "output: file cannot be created"),
        (["a.nii", "b.nii"], "file/out", OutputError, "cannot be created"),
        (["a.nii", "b.nii"], "loop", OutputError, "cannot be created"),
        (["a.nii", "b.nii"], "new/" + "n" * 256, OutputError, "File name too long"),
        (["a.nii", "a.nii.gz"], "new", ArgumentError, "a.nii and a.nii.gz would both be written to"),
        (["a.nii", "a.nii"], "new", ArgumentError, "a.nii and a.nii would both be written to new/a_seg"),
        pytest.param(
            *(["a.nii"], "/proc/out.nii.gz", OutputError, "the folder /proc cannot be written"),
            marks=pytest.mark.skipif(
                not Path("/proc/self").exists(), reason="needs a folder that even root cannot write"
            ),
        ),
    ],
)
def test_outputs_that_cannot_be_are_refused(inputs, output, error, message):
    Path("file").write_text("")
    Path("out/a_seg.nii.gz").mkdir(parents=True)
    Path("loop").symlink_to("loop")
    with pytest.raises(error) as refused:
        planned(inputs, output)
    assert message in str(refused.value)
    assert sorted(os.listdir()) == ["file", "loop", "out"]


def test_cts_of_one_name_and_of_folders_keep_their_folders(phantom_ct):
    for folder in ("all/s1", "all/s 2/deep", "all/.hidden"):
        Path(folder).mkdir(parents=True)
        shutil.copy(phantom_ct, f"{folder}/ct.nii.gz")
    shutil.copy(phantom_ct, "all/ct_seg.nii.gz")  # labels, by its name
    Path("all/link").symlink_to(Path("all").absolute())
    found = ["all/s1/ct.nii.gz", "all/s 2/deep/ct.nii.gz"]
    written = ["out/s1/ct_seg.nii.gz", "out/s 2/deep/ct_seg.nii.gz"]
    for inputs in (found, ["all"]):
        assert {str(c.source): str(c.labels) for c in planned(inputs, "out")} == dict(
            zip(found, written, strict=True)
        )
    assert [str(c.labels) for c in planned(["all/s1", "all/s 2"], "out")] == written
    assert len(planned(["all"], "all")) == 2
    result = Segmentation.measure(np.zeros_like(load(phantom_ct).array, np.uint8), load(phantom_ct))
    result.save("all/s1/other.nii")  # labels, by what stands in the header
    assert [str(c.source) for c in planned(["all/s1/other.nii", *found], "out")] == found
    assert len(planned(["all"], "out")) == 2
    Path("labels").mkdir()
    result.save("labels/x.nii")
    with pytest.raises(InputError, match="labels: holds no CT, but 1 label map"):
        planned(["labels"], "out")


def test_threads_of_workers_are_a_number():
    with pytest.raises(ArgumentError, match="threads: got 0; expected a whole number from 1"):
        cohort.Workers(options={"threads": 0}).crew()


def test_inputs_are_never_overwritten(here):
    for name in ("ct.nii.gz", "a_seg.nii.gz", "ct_seg.json"):
        Path(name).write_text("input")
    Path("link.nii.gz").symlink_to("ct.nii.gz")
    for output in ("ct.nii.gz", "./ct.nii.gz", here / "ct.nii.gz", "link.nii.gz"):
        with pytest.raises(ArgumentError, match=r"^--output: .* is the input ct\.nii\.gz; choose another"):
            planned(["ct.nii.gz"], output, name="--output")
    with pytest.raises(ArgumentError, match=r"is the input a_seg\.nii\.gz"):
        planned(["a.nii.gz", "a_seg.nii.gz"])
    with pytest.raises(ArgumentError, match=r"is the input ct_seg\.json"):
        planned(["ct.nii.gz", "ct_seg.json"], report=True)


# --- run


def test_a_cohort_gives_what_the_segmenter_gives(cases, tmp_path_factory):
    segmenter = trtseg.Segmenter(cascade_model(tmp_path_factory.mktemp("model")), precision="fp32")
    alone = segmenter.segment(cases[0].source)
    wanted = [Case(case.source, case.labels, case.labels.with_suffix(".json")) for case in cases]
    outcomes = list(cohort.run(wanted, segmenter))
    assert [outcome.case for outcome in outcomes] == wanted
    for outcome in outcomes:
        assert outcome.error is None
        assert (np.asarray(nib.load(outcome.case.labels).dataobj) == alone.labels).all()
        seconds = json.loads(outcome.case.report.read_text())["timings_s"]
        assert seconds["read"] > 1e-4  # to read the file, not to hand the Volume over
        assert sum(outcome.result.timings.values()) < outcome.seconds


def test_the_series_and_the_orientation_that_were_asked_for_are_taken(phantom_ct):
    """By the pipeline of this process, and by a worker."""
    ct, model = load(phantom_ct).array, cascade_model(Path("model"))
    save_series(Path("study/a"), ct, SeriesInstanceUID="1.2.1")
    save_series(Path("study/b"), ct[:8], SeriesInstanceUID="1.2.2")
    Path("staged").mkdir()
    for uid, count in (("1.2.1", 12), ("1.2.2", 8)):
        with cohort.plan(["study"], "out.nii.gz", series=uid, report=True) as (case,):
            (outcome,) = cohort.run([case], Bright())
            done = Bench(Setup({"model": model}, None, False)).do(Task(case, "", Path("staged")))
        assert (outcome.row["slices"], done.row["slices"]) == (count, count)
    case = Case(phantom_ct, Path("out.nii.gz"), Path("out.json"))
    for orientation in ("RAS", "LPI"):
        (outcome,) = cohort.run([case], bright := Bright(), orientation=orientation)
        array = load(phantom_ct, orientation=orientation).array
        assert (outcome.result.canonical == (array > 60)).all()
        assert bright.orientation == orientation
        Bench(Setup({"model": model}, orientation, False)).do(Task(case, "", Path("staged")))
        assert json.loads(Path("staged/out.json").read_text())["provenance"]["orientation"] == orientation
    assert (array != load(phantom_ct).array).any()


def test_a_failure_stops_only_its_own_case(cases, monkeypatch):
    """One file is broken, one CT breaks the nets, one folder is gone; the last case is well."""
    cases[0].source.write_text("text")
    cases[2] = Case(cases[2].source, Path("gone/c.nii.gz"))

    class Buggy(Bright):
        def segment(self, volume, *, orientation=None, progress):
            if volume.name == "b.nii.gz":
                raise ZeroDivisionError("a bug")
            return super().segment(volume, progress=progress)

    outcomes = list(cohort.run(cases, Buggy()))
    assert [outcome.case for outcome in outcomes] == cases
    assert [type(outcome.error) for outcome in outcomes] == [
        InputError,
        ZeroDivisionError,
        OutputError,
        type(None),
    ]
    assert [outcome.result is None for outcome in outcomes] == [True, True, True, False]
    assert os.listdir("out") == ["d.nii.gz"]


def test_one_ct_is_read_ahead_and_no_more(cases, monkeypatch):
    read, second = [], threading.Event()

    def reading(path, **_):
        read.append(path.name)
        if len(read) == 2:
            second.set()
        return load(path)

    seen = []

    class Waiting(Bright):
        def segment(self, volume, *, orientation=None, progress):
            if volume.name == "a.nii.gz":
                assert second.wait(SECONDS), "the next CT is not read while the nets run"
                seen.extend(read)
            return super().segment(volume, progress=progress)

    monkeypatch.setattr("trtseg.cohort.pipeline.load", reading)
    assert all(outcome.error is None for outcome in cohort.run(cases, Waiting()))
    assert seen == ["a.nii.gz", "b.nii.gz"]
    assert read == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"]


def test_the_nets_run_while_files_are_written_one_case_ahead(cases, monkeypatch):
    begun, second = [], threading.Event()

    class Telling(Bright):
        def segment(self, volume, *, orientation=None, progress):
            begun.append(volume.name)
            if len(begun) == 2:
                second.set()
            return super().segment(volume, progress=progress)

    save = Segmentation.save

    def saving(self, path, **options):
        if self.name == "a.nii.gz":
            assert second.wait(SECONDS), "the nets do not run while files are written"
        assert threading.current_thread() is threading.main_thread()
        save(self, path, **options)

    monkeypatch.setattr(Segmentation, "save", saving)
    outcomes = cohort.run(cases, Telling())
    assert next(outcomes).error is None
    assert begun == ["a.nii.gz", "b.nii.gz"]  # and c waits until somebody asks for b
    assert [outcome.error for outcome in outcomes] == [None] * 3


def test_results_are_not_kept(cases):
    results = []
    for outcome in cohort.run(cases, Bright()):
        results.append(weakref.ref(outcome.result))
        del outcome
        assert [result() for result in results] == [None] * len(results)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_writing_leaves_no_part_and_no_thread(cases, monkeypatch, error):
    threads = set(threading.enumerate())

    def interrupted(handle):
        assert any(name.startswith(".") for name in os.listdir("out")), "the temporary file"
        raise error

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(error):
        next(cohort.run(cases, Bright()))
    assert os.listdir("out") == []
    assert set(threading.enumerate()) == threads


def test_closing_stops_the_nets_and_ends_the_threads(cases):
    threads = set(threading.enumerate())
    chunks, begun = [], threading.Event()

    class Slow(Bright):
        def segment(self, volume, *, orientation=None, progress):
            if volume.name == "b.nii.gz":
                for chunk in range(1000):  # far longer than a test may take, unless it is stopped
                    chunks.append(chunk)
                    begun.set()
                    threading.Event().wait(0.05)
                    progress("segmenting", chunk / 1000)
            return super().segment(volume, progress=progress)

    outcomes = cohort.run(cases, Slow())
    assert next(outcomes).error is None
    assert begun.wait(SECONDS)
    outcomes.close()
    assert set(threading.enumerate()) == threads
    assert len(chunks) < 1000
    assert os.listdir("out") == ["a.nii.gz"]
