"""``trtseg segment --html``: which pages lie where."""

import csv
import html
import json
import os
import shutil
from pathlib import Path

import dicom_made as made
import pytest
from commands import run

from trtseg.errors import OutputError
from trtseg.phantom import abdomen


def test_one_case_has_a_page_beside_its_labels(here, model, phantom_ct):
    done = run("segment", phantom_ct, "--model", model, "-o", "jane.nii.gz", "--html", "--report")
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir()) == ["jane.html", "jane.json", "jane.nii.gz"]
    page, report = Path("jane.html").read_text("utf-8"), json.loads(Path("jane.json").read_text())
    assert f"{report['liver_ml']:.1f} mL" in page
    assert report["warnings"][0]["text"].replace("'", "&#x27;") in page
    assert report["provenance"]["fingerprint"] in page
    assert "ct.nii.gz" not in page
    assert "jane.html" in done.stdout
    done = run("segment", phantom_ct, "--model", model, "-o", "jane.nii.gz", "--html", "--keep-identity")
    assert "<h1>ct.nii.gz</h1>" in Path("jane.html").read_text("utf-8")
    assert "warning: jane.json: may be of earlier labels; write" in done.stderr
    run("segment", phantom_ct, "--model", model, "-o", "jane.nii.gz", "--preview")
    done = run("segment", phantom_ct, "--model", model, "-o", "jane.nii.gz")
    assert "warning: jane.json, jane.png, jane.html: may be of earlier labels" in done.stderr
    for name in ("jane.json", "jane.png", "jane.html"):
        Path(name).write_text("of another program")
    assert "of earlier labels" not in run("segment", phantom_ct, "--model", model, "-o", "jane.nii.gz").stderr


def test_a_folder_has_an_index_that_knows_what_was_done_before(here, model, phantom_ct):
    Path("cts/deep").mkdir(parents=True)
    shutil.copy(phantom_ct, "cts/deep/b.nii.gz")
    arguments = ("segment", "cts", "--model", model, "-o", "out", "--html")
    assert run(*arguments).exit_code == 0
    shutil.copy(phantom_ct, "cts/a.nii.gz")
    Path("cts/broken.nii.gz").write_text("no CT")
    done = run(*arguments)
    assert done.exit_code == 3
    assert "1 of 3 cases are complete" in done.stderr
    assert "all cases on a page: out/index.html" in done.stderr
    pages = ["a_seg.html", "a_seg.nii.gz", "cohort.csv", "cohort.jsonl", "deep", "index.csv", "index.html"]
    assert sorted(os.listdir("out")) == pages
    index = Path("out/index.html").read_text("utf-8")
    assert 'href="a_seg.html"' in index
    assert 'href="deep/b_seg.html"' in index
    assert len(Path("out/index.csv").read_text().splitlines()) == 4
    (why,) = (line.partition("error: ")[2] for line in done.stderr.splitlines() if "error: " in line)
    assert f'<th scope="row">broken</th><td>{html.escape(why.replace("cts/", ""))}</td>' in index
    again = run(*arguments)
    assert again.exit_code == 3, "the same cases, the same exit code"
    assert "2 of 3 cases are complete" in again.stderr
    shutil.copy("out/a_seg.nii.gz", "out/deep/b_seg.nii.gz")
    with Path("out/deep/b_seg.nii.gz").open("ab") as file:
        file.write(b"\0")
    run(*arguments)
    table = csv.DictReader(Path("out/index.csv").read_text().splitlines())
    states = {row["case"]: row["state"] for row in table}
    assert states == {"a": "done", "deep/b": "changed", "broken": "failed"}
    run(*arguments, "--overwrite")
    for path in ("cts/a.nii.gz", "cts/deep/b.nii.gz"):
        Path(path).write_text("no CT any more")
    assert run(*arguments).exit_code == 2
    assert "href=" not in Path("out/index.html").read_text("utf-8"), "none of these is a result of this run"


def test_an_index_of_earlier_labels_is_told(here, model, phantom_ct):
    Path("cts").mkdir()
    for name in "ab":
        shutil.copy(phantom_ct, f"cts/{name}.nii.gz")
    arguments = ("segment", "cts", "--model", model, "-o", "out")
    run(*arguments, "--html")
    assert "index.html" not in run(*arguments).stderr, "nothing was done"
    assert Path("out/a_seg.html").exists()
    done = run(*arguments, "--min-tumour-ml", "5")
    assert not Path("out/a_seg.html").exists()
    assert "warning: out/index.html: may be of earlier labels; write anew (--html)" in done.stderr
    assert "index.html" not in run(*arguments, "--html").stderr.replace("on a page: out/index.html", "")


def test_cases_whose_index_cannot_be_written_are_there(here, model, phantom_ct, monkeypatch):
    def full(*_):
        raise OutputError("out/index.html: cannot be written (No space left on device)")

    monkeypatch.setattr("trtseg.report.index.write_index", full)
    Path("cts").mkdir()
    shutil.copy(phantom_ct, "cts/a.nii.gz")
    shutil.copy(phantom_ct, "cts/b.nii.gz")
    done = run("segment", "cts", "--model", model, "-o", "out", "--html")
    assert done.exit_code == 3, "some were written"
    assert "error: out/index.html: cannot be written" in done.stderr
    assert "b_seg.html" in os.listdir("out")


def test_the_index_has_the_case_that_went_well_of_two_from_one_folder(here, model):
    made.save_series(here / "ct", abdomen((6, 64, 64), (20.0, 6.0, 6.0)).ct, 20.0)
    Path("list.csv").write_text("input,output,series\nct,good,\nct,bad,1.2.3\n")
    done = run("segment", "list.csv", "--model", model, "-o", "out", "--html")
    assert done.exit_code == 3, done.output
    good, bad = Path("out/index.csv").read_text().splitlines()[1:]
    assert good.startswith("good,")
    assert "good.html" in good
    assert bad.startswith("bad,")
    assert "holds no series 1.2.3" in bad


@pytest.mark.parametrize("kinds", [None, "seg,sr", "labelmap", "sc"])
def test_a_case_has_the_same_name_in_both_tables_whatever_is_written(here, model, kinds):
    ct = abdomen((6, 64, 64), (20.0, 6.0, 6.0)).ct
    for uid, name in (("1.2.3", "a"), ("1.2.4", "deep/b.1")):
        made.save_series(here / "cts" / name, ct, 20.0, StudyInstanceUID=uid)
    dicom = () if kinds is None else ("--dicom", kinds)
    assert run("segment", "cts", "--model", model, "-o", "out", "--html", *dicom).exit_code == 0
    for table in ("cohort.csv", "index.csv"):
        with Path("out", table).open() as file:
            assert [row["case"] for row in csv.DictReader(file)] == ["a", "deep/b.1"]


def test_pages_with_names_are_not_complete_without_and_the_other_way_round(here, model, phantom_ct):
    Path("cts").mkdir()
    shutil.copy(phantom_ct, "cts/jane.nii.gz")
    for options in ((), ("--keep-identity",), ()):
        done = run("segment", "cts", "--model", model, "-o", "out", "--html", *options)
        assert "complete" not in done.stderr
        assert ("jane" in Path("out/jane_seg.html").read_text("utf-8")) == bool(options)
