"""``trtseg evaluate``: what it prints and writes, and what it refuses."""

import io
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import run
from PIL import Image

from trtseg.metrics.cases import CONVENTIONS, evaluate_case
from trtseg.report.pictures import PREDICTED_LIVER, PREDICTED_TUMOUR, TRUE_LIVER, TRUE_TUMOUR

SPACING = (5.0, 0.9, 0.8)
AFFINE = np.diag([-0.8, -0.9, 5.0, 1.0])
TRUTH = np.zeros((6, 40, 48), np.uint8)
TRUTH[1:5, 5:30, 8:36] = 1
TRUTH[2:4, 10:16, 12:20] = 2
GOOD = TRUTH.copy()
GOOD[1:5, 5:6] = 0
POOR = np.roll(TRUTH, 6, axis=2)
EMPTY = np.zeros_like(TRUTH)


def write(path, labels, affine=AFFINE):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), path)
    return path


def write_ct(path):
    rng = np.random.default_rng(0)
    hu = np.where(TRUTH > 0, 100, -100) + rng.integers(-9, 9, TRUTH.shape)
    hu[:, :3] = -1000
    return write(path, hu.astype(np.int16))


def refused(message, *arguments):
    done = run("evaluate", *arguments)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert done.stdout == ""


def test_two_files(here):
    prediction, truth = write("p.nii.gz", GOOD), write("t.nii.gz", TRUTH)
    done = run("evaluate", prediction, truth, "--json", "o.json", "--markdown", "o.md")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert sorted(os.listdir()) == ["o.json", "o.md", "p.nii.gz", "t.nii.gz"]
    expected = evaluate_case(GOOD, TRUTH, SPACING, name="p")
    document = json.loads(Path("o.json").read_text())
    (case,) = document["cases"]
    assert case["name"] == "p"
    assert case["liver"]["dice"] == expected.liver.overlap.dice
    assert case["liver"]["assd"] == pytest.approx(expected.liver.surface.assd)
    assert case["lesions"]["detected"] == 1
    assert document["notice"] == "not for clinical use"
    assert document["conventions"] == CONVENTIONS
    assert document["left_out"] == []
    page = Path("o.md").read_text()
    dice = f"{expected.liver.overlap.dice:.3f}"
    for shown in (done.stdout, page):
        assert dice in shown
        assert "1 of 1" in shown
        assert "Not for clinical use" in shown
    assert f"| Dice | {dice} | 1.000 |" in page
    for meaning in CONVENTIONS.values():
        assert meaning in page


def test_what_is_undefined_is_a_dash_and_null(here):
    done = run(
        "evaluate", write("p.nii", EMPTY), write("t.nii", TRUTH), "--json", "o.json", "--markdown", "o.md"
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"ASSD, mm +– +–", done.stdout)
    assert re.search(r"precision +–", done.stdout)
    assert "| precision | – |" in Path("o.md").read_text()
    assert "nan" not in (done.stdout + Path("o.md").read_text()).lower()
    assert json.loads(Path("o.json").read_text())["summary"]["liver"]["assd"]["mean"] is None


def test_detected_lesions_get_every_metric_of_lits(here):
    # Two lesions one voxel apart in x (0.8 mm) from the truth, of 2 x 6 x 8 voxels each; and one missed.
    truth, prediction = TRUTH.copy(), TRUTH.copy()
    truth[2:4, 10:16, 24:32] = truth[1, 25:27, 10:12] = 2
    prediction[TRUTH == 2] = 1
    prediction[2:4, 10:16, 13:21] = prediction[2:4, 10:16, 25:33] = 2
    paths = write("p.nii", prediction), write("t.nii", truth)
    done = run("evaluate", *paths, "--json", "o.json", "--markdown", "o.md")
    assert done.exit_code == 0, done.output
    assert "| mean over detected lesions | n = 2 |" in Path("o.md").read_text()
    # Both masks are two slices thick, so all 96 voxels are surface; each has 12 that are 0.8 mm from the other.
    assert f"| RMSD, mm | {0.8 * (12 / 96) ** 0.5:.2f} |" in Path("o.md").read_text()
    assert re.search(r"mean over detected lesions +n = 2", done.stdout)
    lesions = json.loads(Path("o.json").read_text())["summary"]["lesions"]
    assert (lesions["true"], lesions["detected"]) == (3, 2)
    assert lesions["mean_rmsd"] == pytest.approx(0.8 * (12 / 96) ** 0.5)
    # Without one there is no such table, and in the JSON file there is null.
    none = run("evaluate", write("p.nii", np.minimum(TRUTH, 1)), paths[1], "--json", "o.json")
    assert "mean over detected" not in none.stdout
    assert json.loads(Path("o.json").read_text())["summary"]["lesions"]["mean_voe"] is None


def test_liver_only_measures_what_is_called_tumour_and_does_not_judge_it(here):
    prediction = TRUTH.copy()
    prediction[2, 20, 30] = 2
    # What a truth says of tumours does not count either.
    write("p/a.nii", prediction), write("t/a.nii", TRUTH)
    write("p/b.nii", np.minimum(TRUTH, 1)), write("t/b.nii", np.minimum(TRUTH, 1))
    done = run("evaluate", "p", "t", "--liver-only", "--json", "o.json", "--markdown", "o.md")
    assert done.exit_code == 0, done.output
    document = json.loads(Path("o.json").read_text())
    assert set(document["summary"]) == {"cases", "liver"}
    assert document["summary"]["liver"]["dice"]["mean"] == 1
    ml = (2 * 6 * 8 + 1) * 5.0 * 0.9 * 0.8 / 1000
    a, b = (case["predicted_tumour"] for case in document["cases"])
    assert a == {"ml": pytest.approx(ml), "lesions": 2}
    assert b == {"ml": 0, "lesions": 0}
    page = Path("o.md").read_text()
    assert (
        "| case | mL called tumour | in lesions |\n|---|---:|---:|\n| a | 0.3 | 2 |\n| b | 0.0 | 0 |\n"
        in page
    )
    assert re.search(r" a +0\.3 +2 ", done.stdout)
    for judged in ("tumour Dice", "detected lesions |", "burden, RMSE"):
        assert judged not in page + done.stdout
    one = run("evaluate", "p/a.nii", "t/a.nii", "--liver-only")  # of one case alone, too
    assert re.search(r" a +0\.3 +2 ", one.stdout)


def test_files_without_partner_are_named_and_not_counted(here):
    for name in ("both", "mine"):
        write(f"p/{name}.nii.gz", GOOD)
    for name in ("both", "theirs", "others"):
        write(f"t/{name}.nii.gz", TRUTH)
    done = run("evaluate", "p", "t", "--json", "o.json", "--markdown", "o.md")
    assert done.exit_code == 0, done.output
    first, second = done.stderr.splitlines()
    assert first.startswith("note: 1 prediction has no truth")
    assert first.endswith(" and is not counted: mine.nii.gz")
    assert second.startswith("note: 2 truths have no prediction")
    assert second.endswith(" and are not counted: others.nii.gz, theirs.nii.gz")
    unmatched = json.loads(Path("o.json").read_text())["unmatched"]
    assert unmatched == {"predictions": ["mine.nii.gz"], "truths": ["others.nii.gz", "theirs.nii.gz"]}
    assert "mine.nii.gz" in Path("o.md").read_text()


def test_files_without_partner_are_told_with_their_folders(here):
    for path in ("p/a/seg.nii", "p/b/seg.nii", "t/a/seg.nii", "t/c/seg.nii", "t/d/seg.nii"):
        write(path, TRUTH)
    done = run("evaluate", "p", "t/", "--json", "o.json")
    first, second = done.stderr.splitlines()
    assert first.endswith("not counted: b/seg.nii")
    assert second.endswith("not counted: c/seg.nii, d/seg.nii")
    unmatched = json.loads(Path("o.json").read_text())["unmatched"]
    assert unmatched == {"predictions": ["b/seg.nii"], "truths": ["c/seg.nii", "d/seg.nii"]}


def test_a_broken_case_is_reported_and_left_out(here):
    for name in ("a", "b", "c"):
        write(f"p/{name}.nii.gz", GOOD)
        write(f"t/{name}.nii.gz", TRUTH)
    write("p/b.nii.gz", GOOD + np.uint8(5))
    Path("t/c.nii.gz").write_bytes(b"")
    done = run("evaluate", "p", "t", "--json", "o.json", "--markdown", "o.md")
    assert done.exit_code == 3, done.output
    labels, empty = done.stderr.splitlines()
    assert labels.startswith("error: p/b.nii.gz: got the labels 5, 6, 7; expected 0")
    assert empty.startswith("error: t/c.nii.gz: is empty; expected a NIfTI image")
    document = json.loads(Path("o.json").read_text())
    assert [case["name"] for case in document["cases"]] == ["a"]
    assert [case["name"] for case in document["left_out"]] == ["b", "c"]
    assert "b was left out: p/b.nii.gz" in Path("o.md").read_text()


def test_the_document_says_which_numbers_may_be_wrong(here):
    """It may be read without the lines of the terminal."""
    for name, affine in (("fine", AFFINE), ("unknown", np.diag([-1, -1, 1, 1]))):
        write(f"p/{name}.nii.gz", GOOD, affine)
        write(f"t/{name}.nii.gz", TRUTH, affine)
    done = run("evaluate", "p", "t", "--json", "o.json", "--markdown", "o.md")
    assert done.exit_code == 0, done.output
    fine, unknown = json.loads(Path("o.json").read_text())["cases"]
    assert "warnings" not in fine
    (warning,) = unknown["warnings"]
    assert "1 x 1 x 1 mm" in warning
    assert done.stderr == f"warning: {warning}\n"
    lines = Path("o.md").read_text().splitlines()
    assert [line for line in lines if "warning:" in line] == [f"- unknown: warning: {warning}"]


def test_if_nothing_can_be_compared_nothing_is_written(here):
    write("p/a.nii.gz", GOOD[1:])
    write("t/a.nii.gz", TRUTH)
    refused(
        r"p/a\.nii\.gz: its grid of 48 x 40 x 5 voxels", "p", "t", "--json", "o.json", "--markdown", "o.md"
    )
    assert sorted(os.listdir()) == ["p", "t"]


def test_a_bug_in_one_case_is_shown_and_the_others_go_on(here, monkeypatch):
    for name in ("a", "b"):
        write(f"p/{name}.nii.gz", GOOD)
        write(f"t/{name}.nii.gz", TRUTH)

    def buggy(*arguments, name, **options):
        if name == "a":
            raise ZeroDivisionError("oops")
        return evaluate_case(*arguments, name=name, **options)

    monkeypatch.setattr("trtseg.pairs.evaluate_case", buggy)
    done = run("evaluate", "p", "t", "--json", "o.json")
    assert done.exit_code == 1
    assert "p/a.nii.gz: unexpected, please report this" in done.stderr
    assert "ZeroDivisionError: oops" in done.stderr
    assert json.loads(Path("o.json").read_text())["left_out"] == [
        {"name": "a", "reason": "unexpected ZeroDivisionError"}
    ]


def test_bad_usage_is_refused(here):
    prediction, truth, ct = write("p.nii", GOOD), write("t.nii", TRUTH), write_ct("ct.nii")
    write("folder/t.nii", TRUTH)
    refused("none.nii: no such file", "none.nii", truth)
    refused("PREDICTION, TRUTH: got the folder folder and the file t.nii", "folder", truth)
    refused("--ct: got ct.nii; expected a folder", "folder", "folder", "--ct", ct, "--overlays", "o")
    refused("--ct, --overlays: got only one", prediction, truth, "--ct", ct)
    refused("--ct, --overlays: got only one", prediction, truth, "--overlays", "o")
    refused("--json: p.nii is an input", prediction, truth, "--json", prediction)
    refused("--markdown: o is an input or the other", prediction, truth, "--json", "o", "--markdown", "o")
    refused("the folder .*none does not exist", prediction, truth, "--json", "none/o.json")
    refused("--overlays: t.nii cannot be created", prediction, truth, "--ct", ct, "--overlays", truth)
    assert sorted(os.listdir()) == ["ct.nii", "folder", "p.nii", "t.nii"]


def near(image, colour):
    return int((np.abs(image.astype(int) - colour) <= 24).all(axis=-1).sum())


def halves(path):
    """The CT alone and the CT with outlines, as the picture shows them side by side."""
    image = np.asarray(Image.open(io.BytesIO(Path(path).read_bytes())))
    return np.split(image[40:-26], [image.shape[1] // 2], axis=1)


def test_overlays_show_the_worst_cases(here):
    for name, labels in (("good", GOOD), ("perfect", TRUTH), ("poor", POOR)):
        write(f"p/{name}.nii.gz", labels)
        write(f"t/{name}.nii.gz", TRUTH)
        write_ct(f"ct/{name}_0000.nii.gz")
    done = run("evaluate", "p", "t", "--ct", "ct", "--overlays", "new/o", "--worst", "2", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert sorted(os.listdir("new/o")) == ["good.png", "poor.png"]
    plain, drawn = halves("new/o/poor.png")
    for colour in (TRUE_LIVER, PREDICTED_LIVER):
        assert near(drawn, colour) > 500
        assert near(plain, colour) == 0
    for colour in (TRUE_TUMOUR, PREDICTED_TUMOUR):
        assert near(drawn, colour) > 100
    options = "--liver-only", "--ct", "ct", "--overlays", "liver", "--worst", "1", "--quiet"
    assert run("evaluate", "p", "t", *options).exit_code == 0
    _, drawn = halves("liver/poor.png")
    for colour in (TRUE_TUMOUR, PREDICTED_TUMOUR):  # which are not judged
        assert near(drawn, colour) == 0


def test_a_case_that_cannot_be_drawn_is_reported_and_its_scores_stay(here):
    for name in ("a", "b", "c"):
        write(f"p/{name}.nii.gz", POOR)
        write(f"t/{name}.nii.gz", TRUTH)
    write_ct("ct/a.nii.gz")
    write("ct/b.nii.gz", np.full((3, 40, 48), -500, np.int16))
    done = run("evaluate", "p", "t", "--ct", "ct", "--overlays", "o", "--json", "o.json")
    assert done.exit_code == 3, done.output
    grid, missing = done.stderr.splitlines()
    assert grid.startswith("error: ct/b.nii.gz: its grid of 48 x 40 x 3 voxels")
    assert missing.startswith("error: p/c.nii.gz: --ct has no CT of that name")
    assert os.listdir("o") == ["a.png"]
    assert len(json.loads(Path("o.json").read_text())["cases"]) == 3


def test_a_file_where_a_folder_of_pictures_is_to_be_is_named(here):
    write("p/sub/a.nii.gz", POOR)
    write("t/sub/a.nii.gz", TRUTH)
    write_ct("ct/sub/a.nii.gz")
    Path("o").mkdir()
    Path("o/sub").write_text("")
    done = run("evaluate", "p", "t", "--ct", "ct", "--overlays", "o", "--quiet")
    assert done.exit_code == 3, done.output
    line = "error: p/sub/a.nii.gz: --overlays: o/sub cannot be created (File exists); choose another folder\n"
    assert done.stderr == line


def test_segment_and_evaluate_go_together(here, model, phantom_ct):
    assert run("segment", phantom_ct, "--model", model, "-o", "seg.nii.gz", "-q").exit_code == 0
    done = run("evaluate", "seg.nii.gz", phantom_ct.with_name("truth.nii.gz"))
    assert done.exit_code == 0, done.output
    assert "Dice" in done.stdout
