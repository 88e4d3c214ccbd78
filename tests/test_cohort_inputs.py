"""What inputs of a cohort stand for: patterns, lists, and CTs in stores that fsspec reads."""

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_made import save_series
from tiny import cascade_model

import trtseg
from trtseg import cohort
from trtseg.cohort.remote import look
from trtseg.errors import ArgumentError, InputError
from trtseg.io import load

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder, and an empty store in memory."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def planned(*inputs, output="out", **options):
    """Each input with the path of its labels."""
    with cohort.plan(inputs, output, **options) as cases:
        return {case.input: str(case.labels) for case in cases}


def test_a_pattern_is_all_files_of_that_name(phantom_ct):
    for folder in ("scans/a", "scans/b/deep"):
        Path(folder).mkdir(parents=True)
        shutil.copy(phantom_ct, f"{folder}/ct.nii.gz")
    assert planned("scans/*/ct.nii.gz") == {"scans/a/ct.nii.gz": "out/ct_seg.nii.gz"}
    assert planned("scans/**/ct.nii.gz") == {
        "scans/a/ct.nii.gz": "out/a/ct_seg.nii.gz",
        "scans/b/deep/ct.nii.gz": "out/b/deep/ct_seg.nii.gz",
    }
    shutil.copy(phantom_ct, "scan[1].nii.gz")
    assert planned("scan[1].nii.gz", output="o.nii.gz") == {"scan[1].nii.gz": "o.nii.gz"}
    with pytest.raises(InputError, match=r"none/\*\.nii: no file or folder has a name of this pattern"):
        planned("none/*.nii")


def test_the_folder_of_the_results_is_no_input_that_another_start_of_the_command_stops_at(phantom_ct):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        shutil.copy(phantom_ct, f"{folder}/ct.nii.gz")
    first = planned("*")
    assert list(first) == ["a/ct.nii.gz", "b/ct.nii.gz"]
    Path("out/.cohort-unfinished").mkdir(parents=True)
    assert planned("*") == planned("a", "b", "out") == first, "killed before the first case"
    for labels in first.values():
        Path(labels).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), labels)
    left_out = []
    assert planned("*", left_out=left_out) == planned("a", "b", "out") == first
    assert left_out == []
    with pytest.raises(InputError, match="out: holds no CT, but 2 label maps"):
        planned("out")
    shutil.copytree("out", "other", ignore=shutil.ignore_patterns(".*"))
    with pytest.raises(InputError, match="other: holds no CT, but 2 label maps; give the folder of the CTs"):
        planned("a", "other")


def test_a_shells_pattern_has_a_folder_where_all_but_one_are_label_maps(phantom_ct, here):
    """As the same pattern in quotes."""
    shutil.copy(phantom_ct, "ct.nii.gz")
    volume = load("ct.nii.gz")
    trtseg.Segmentation.measure(np.zeros_like(volume.array, np.uint8), volume).save("labels.nii.gz")
    left_out = []
    for inputs in (("ct.nii.gz", "labels.nii.gz"), ("labels.nii.gz", "ct.nii.gz"), ("*.nii.gz",)):
        with cohort.plan(inputs, "out", left_out=left_out) as (case,):
            assert str(case.labels) == "out/ct_seg.nii.gz"
            assert Path("out").is_dir()
            assert not cohort.is_alone([case], inputs), "so that the folder gets its table and page"
    assert left_out == [Path("labels.nii.gz")] * 3
    assert planned("ct.nii.gz", "labels.nii.gz", output="o.nii.gz") == {"ct.nii.gz": "o.nii.gz"}


def test_a_list_names_inputs_and_where_their_labels_go(phantom_ct):
    Path("data/more").mkdir(parents=True)
    for name in ("a", "b", "more/c", "d"):
        shutil.copy(phantom_ct, f"data/{name}.nii.gz")
    rows = [
        "input,output,series",
        "a.nii.gz,p1/liver,",
        '"b.nii.gz",p2.nii,',
        "more,,",
        f"{Path('data/d.nii.gz').resolve()},,",
    ]
    Path("data/list.csv").write_text("\ufeff" + "\n".join(rows))
    assert planned("data/list.csv") == {
        "data/a.nii.gz": "out/p1/liver.nii.gz",
        "data/b.nii.gz": "out/p2.nii",
        "data/more/c.nii.gz": "out/more/c_seg.nii.gz",
        str(Path("data/d.nii.gz").resolve()): "out/d_seg.nii.gz",
    }
    assert planned("data/list.csv", html=True)["data/a.nii.gz"] == "out/p1/liver.nii.gz"


def test_a_list_names_the_series_of_an_input_with_an_output_or_without():
    Path("study").mkdir()
    rows = ["study,1.2.1,", "study, 1.2.2 ,second", "study,,third", "memory://other,1.2.3,"]
    Path("list.csv").write_text("\n".join(["input,series,output", *rows]))
    with cohort.plan(["list.csv"], "out") as cases:
        assert [(case.input, str(case.labels), case.series) for case in cases] == [
            ("study", "out/study_seg.nii.gz", "1.2.1"),
            ("study", "out/second.nii.gz", "1.2.2"),
            ("study", "out/third.nii.gz", None),
            ("memory://other", "out/other_seg.nii.gz", "1.2.3"),
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input;output\na.nii;b\n", r"got the columns \[.input;output.\]; expected .* with commas between"),
        ("path\na.nii\n", r"list\.csv: got the columns \['path'\]; expected input and, if wanted, output"),
        ("input,output\na.nii,../b\n", "line 2 has the output ../b; expected a path in the folder of the"),
        ("input,output\na.nii,/b\n", "line 2 has the output /b"),
        *(
            (f"input,output\na.nii,{place}\n", f"line 2 has the output {place}; expected the name of a file")
            for place in ("b/", ".", "b/.c")
        ),
        ("input,input\na.nii,b.nii\n", "got the columns .*each once"),
        ("input,output\na.nii,b\n,c\n", "line 3 has no input"),
        ("input,output\na.nii,b\nc.nii,b.nii.gz\n", "a.nii and c.nii would both be written to out/b.nii.gz"),
        ("input\n,\n", "line 2 has no input"),
        ("input\n", "inputs: got none"),
        (
            "input,output\na.nii,b\nc,1.nii,c\n",
            "line 3 has more cells than there are columns; quote what holds",
        ),
        (
            'input,output\na.nii,a\nb.nii,"b\nc.nii,c\n',
            r"list\.csv: is no CSV after line 2 \(unexpected end of data\); check",
        ),
        ('input,output\na.nii,"a\nb.nii,b"\n', "line 3 ends an input or output of several lines, 'a.niia"),
        (
            "input\n" + '"a.nii\n' + 9000 * "scans/patient/ct.nii\n",
            "is no CSV after line 1 .field larger than field limit",
        ),
        (
            "input,output\na.nii,index\n",
            "the page of all cases and a.nii would both be written to out/index.html",
        ),
    ],
)
def test_a_list_that_says_nothing_sensible_is_refused(text, message):
    Path("list.csv").write_text(text)
    with pytest.raises((InputError, ArgumentError), match=message):
        planned("list.csv", html=True)
    with pytest.raises(InputError, match=r"missing\.csv: cannot be read"):
        planned("missing.csv")


def test_inputs_are_a_list():
    with pytest.raises(ArgumentError, match=r"inputs: got 'scans'; expected a list of paths, as \['scans'\]"):
        planned_one("scans")
    with pytest.raises(ArgumentError, match="inputs: got 'scans'; expected a list"):
        planned_one(Path("scans"))


def planned_one(inputs):
    with cohort.plan(inputs, "out") as cases:
        return cases


def test_what_is_taken_for_labels_is_told(phantom_ct):
    Path("scans").mkdir()
    for name in ("a", "c_seg"):
        shutil.copy(phantom_ct, f"scans/{name}.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.uint8), np.eye(4)), "scans/b.nii.gz")
    Path("scans/d.nii.gz").symlink_to("nowhere")
    left_out = []
    assert [*planned("scans", left_out=left_out)] == ["scans/a.nii.gz", "scans/d.nii.gz"]
    assert left_out == [Path("scans/b.nii.gz"), Path("scans/c_seg.nii.gz")]


@pytest.fixture
def stores(phantom_ct):
    """Two CTs and a label map in memory, in a zip and in a local folder, each with the URL of its top."""
    memory = fsspec.filesystem("memory")
    names = ("scans/a.nii.gz", "scans/deep/b.nii.gz", "scans/deep/b_seg.nii.gz", "scans/.hidden/c.nii.gz")
    with zipfile.ZipFile("all.zip", "w") as archive:
        for name in names:
            memory.pipe_file(f"/{name}", phantom_ct.read_bytes())
            archive.write(phantom_ct, name)
            Path("local", name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(phantom_ct, Path("local", name))
    return [
        ("memory:///", ""),
        ("zip://", f"::file://{Path('all.zip').resolve()}"),
        (f"file://{Path('local').resolve()}/", ""),
    ]


def test_cts_in_stores_are_found_and_read_as_those_of_files_are(stores, phantom_ct):
    with trtseg.Segmenter(cascade_model(Path("model"))) as segmenter:
        segmenter.segment(phantom_ct).save("alone.nii.gz")
        for number, (start, end) in enumerate(stores):
            out = f"out{number}"
            for inside in ("scans", "scans/**/[ab].nii.gz"):
                labels = planned(f"{start}{inside}{end}", output=out)
                assert list(labels.values()) == [f"{out}/a_seg.nii.gz", f"{out}/deep/b_seg.nii.gz"], start
            one = f"{start}scans/a.nii.gz{end}"
            assert planned(one, output="one.nii.gz") == {one: "one.nii.gz"}
            with cohort.plan([f"{start}scans{end}"], out) as cases:
                for is_old in (False, True):
                    outcomes = list(cohort.run(cases, segmenter, folder=out))
                    assert [(o.error, o.is_old) for o in outcomes] == [(None, is_old)] * 2
            for name in ("a_seg.nii.gz", "deep/b_seg.nii.gz"):
                assert Path(out, name).read_bytes() == Path("alone.nii.gz").read_bytes()


def test_the_only_ct_of_a_folder_or_a_pattern_in_a_store(phantom_ct):
    Path("out").mkdir()
    url = "memory:///solo/deep/only.nii.gz"
    fsspec.filesystem("memory").pipe_file("/solo/deep/only.nii.gz", phantom_ct.read_bytes())
    Path("list.csv").write_text(f"input\n{url}\n")
    Path("other.csv").write_text("input\nmemory://solo\n")
    for given in ("memory://solo", "memory://solo/**/*.nii.gz", url, "list.csv", "other.csv"):
        assert planned(given) == {url: "out/only_seg.nii.gz"}, given


def test_a_pattern_is_one_behind_a_cache_too(stores):
    folder = Path("local/scans").resolve()
    labels = planned(f"simplecache::file://{folder}/**/[ab].nii.gz", output="out")
    assert list(labels.values()) == ["out/a_seg.nii.gz", "out/deep/b_seg.nii.gz"]


def test_a_query_is_no_part_of_the_name_of_a_ct_on_the_web(phantom_ct, monkeypatch):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (memory, url))
    url = "https://store.test/scans/ct.nii.gz?download=1&key=a/b*"
    memory.pipe_file(url, phantom_ct.read_bytes())
    Path("out").mkdir()
    with (
        trtseg.Segmenter(cascade_model(Path("model"))) as segmenter,
        cohort.plan([url], "out") as cases,
    ):
        (outcome,) = cohort.run(cases, segmenter)
    assert (outcome.error, outcome.case.input) == (None, url)
    assert os.listdir("out") == ["ct_seg.nii.gz"]


def test_a_folder_of_dicom_files_in_a_store_is_a_ct(phantom_ct):
    memory, ct = fsspec.filesystem("memory"), load(phantom_ct).array
    for path in save_series(Path("local"), ct).iterdir():
        memory.pipe_file(f"/study/a/deep/{path.name}.dcm", path.read_bytes())
    Path("out").mkdir()
    with (
        trtseg.Segmenter(cascade_model(Path("model"))) as segmenter,
        cohort.plan(["memory://study/a/deep"], "out.nii.gz") as cases,
    ):
        (outcome,) = cohort.run(cases, segmenter)
    assert (outcome.error, outcome.row["slices"]) == (None, len(ct))
    assert outcome.case.input == "memory://study/a/deep"


def test_a_series_is_that_of_one_input():
    Path("study").mkdir()
    with cohort.plan(["study"], "out.nii.gz", series="1.2.3") as (case,):
        assert (case.source, case.labels, case.series) == (Path("study"), Path("out.nii.gz"), "1.2.3")
    with pytest.raises(ArgumentError, match="series: got one for 2 inputs; expected one input"):
        planned("study", "study", series="1.2.3")


def test_results_of_another_ct_in_a_store_are_not_replaced(phantom_ct):
    memory = fsspec.filesystem("memory")
    data = Path(phantom_ct).read_bytes()
    for name in ("a", "b"):
        memory.pipe_file(f"/{name}/ct.nii.gz", data)
    shutil.copy(phantom_ct, "ct.nii.gz")
    urls = "memory://a/ct.nii.gz", "memory://b/ct.nii.gz"
    Path("out").mkdir()

    def run(given):
        with cohort.plan([given], "out") as cases:
            return [one.is_old for one in cohort.run(cases, segmenter, folder="out")]

    with trtseg.Segmenter(cascade_model(Path("model"))) as segmenter:
        assert run(urls[0]) == [False]
        assert run(urls[0]) == [True]
        for other in (urls[1], "ct.nii.gz"):
            with pytest.raises(
                ArgumentError, match=r"holds the labels of memory://a/ct.nii.gz, and those of"
            ):
                run(other)
        memory.rm("/a/ct.nii.gz")
        assert run("ct.nii.gz") == [False]
        with pytest.raises(ArgumentError, match=r"holds the labels of .*/ct.nii.gz, and those of memory://b"):
            run(urls[1])


def test_a_store_that_cannot_be_read_is_one_sentence_about_its_url(stores, monkeypatch):
    Path("copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "copies")
    memory = fsspec.filesystem("memory")
    for url, message in (
        ("memory://nowhere/*.nii", r"memory://nowhere/\*\.nii: holds no CT"),
        ("nonsense://a", r"nonsense://a: "),
        ("memory:///list.csv", r"memory:///list\.csv: cannot be read \(FileNotFoundError"),
    ):
        with pytest.raises(InputError, match=message):
            planned(url)
    memory.pipe_file("/scans/a.nii.gz", b"text")
    with (
        trtseg.Segmenter(cascade_model(Path("model"))) as segmenter,
        cohort.plan(["memory://scans", "memory://gone.nii.gz"], "out") as cases,
    ):
        outcomes = {o.case.input: o for o in cohort.run(cases, segmenter, folder="out")}
    assert str(outcomes.pop("memory:///scans/a.nii.gz").error).startswith("memory:///scans/a.nii.gz: ")
    assert "cannot be read (FileNotFoundError" in str(outcomes.pop("memory://gone.nii.gz").error)
    (rest,) = outcomes.values()
    assert rest.error is None
    assert os.listdir("copies") == []


def test_a_folder_of_dicom_in_a_store_is_one_ct():
    memory = fsspec.filesystem("memory")
    names = ("DICOMDIR", "one/1.dcm", "one/2.dcm", "two/IM0", "two/notes.txt", "uid/1.2.7", "none/dicomdir")
    names += ("1.2.840.1/1.dcm", "1.2.840.2/1.dcm")
    for name in names:
        memory.pipe_file(f"/study/{name}", b"x")
    assert planned("memory://study") == {
        "memory:///study/1.2.840.1": "out/1.2.840.1_seg.nii.gz",
        "memory:///study/1.2.840.2": "out/1.2.840.2_seg.nii.gz",
        "memory:///study/one": "out/one_seg.nii.gz",
        "memory:///study/two": "out/two_seg.nii.gz",
        "memory:///study/uid": "out/uid_seg.nii.gz",
    }
    Path("out").mkdir()
    assert planned("memory://study/1.2.840.1") == {"memory://study/1.2.840.1": "out/1.2.840.1_seg.nii.gz"}


def test_a_whole_store_is_one_ct_that_is_named_like_its_archive_or_its_kind(phantom_ct):
    memory, ct = fsspec.filesystem("memory"), load(phantom_ct).array
    with zipfile.ZipFile("archive.zip", "w") as archive:
        for path in save_series(Path("local"), ct).iterdir():
            archive.write(path, path.name)
            memory.pipe_file(f"/{path.name}", path.read_bytes())
    inside = f"zip://::file://{Path('archive.zip').resolve()}"
    Path("out").mkdir()
    with (
        trtseg.Segmenter(cascade_model(Path("model"))) as segmenter,
        cohort.plan([inside, "memory://"], "out") as cases,
    ):
        outcomes = list(cohort.run(cases, segmenter))
    assert [(o.error, o.row["slices"], o.case.input) for o in outcomes] == [
        (None, len(ct), inside),
        (None, len(ct), "memory://"),
    ]
    assert sorted(os.listdir("out")) == ["archive_seg.nii.gz", "memory_seg.nii.gz"]


@pytest.mark.parametrize(
    "name", ["../../escaped.nii.gz", "scans/../../../escaped.nii.gz", "scans/../../d/1.dcm"]
)
def test_no_name_in_an_archive_leads_out_of_the_folder_of_the_results(phantom_ct, name):
    """Labels were written above that folder, wherever the names of the archive led."""
    with zipfile.ZipFile("evil.zip", "w") as archive:
        archive.write(phantom_ct, "scans/deep/ct.nii.gz")
        archive.write(phantom_ct, name)
    end = f"::file://{Path('evil.zip').resolve()}"
    for pattern in ("**", "*/*/*"):
        with pytest.raises(
            InputError, match=r"evil\.zip: holds .*; expected names without '\.\.', unpack it"
        ):
            planned(f"zip://{pattern}{end}", output="out")
    assert list(planned(f"zip://scans/deep{end}", output="out").values()) == ["out/ct_seg.nii.gz"]


def test_no_name_in_an_archive_leads_out_of_the_folder_that_it_is_copied_to():
    """With fsspec 2024.6 any file beside the DICOM files of an archive was written wherever its name led."""
    with zipfile.ZipFile("evil.zip", "w") as archive:
        archive.writestr("d/1.dcm", b"x")
        archive.writestr("d/../../escaped.txt", b"x")
    Path("out").mkdir()
    url = f"zip://d::file://{Path('evil.zip').resolve()}"
    with trtseg.Segmenter(cascade_model(Path("model"))) as segmenter, cohort.plan([url], "out") as cases:
        (outcome,) = cohort.run(cases, segmenter)
    assert "escaped.txt'; expected names without '..', unpack it" in str(outcome.error)


def test_a_change_in_a_store_is_seen():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/d/1.dcm", b"x")
    file, folder = (cohort.Case(Path("1.dcm"), Path(), url=url) for url in ("memory://d/1.dcm", "memory://d"))
    before = look(file), look(folder)
    assert "" not in before
    assert (look(file), look(folder)) == before
    memory.pipe_file("/d/1.dcm", b"xy")
    assert look(file) != before[0]
    assert look(folder) != before[1]
    assert look(cohort.Case(Path(), Path(), url="memory://gone")) == ""
