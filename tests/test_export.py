"""From checkpoints to a model folder that runs, for each of the three methods."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from matplotlib.axes import Axes

from tests.tiny_kit import write_no_nets
from training import calibration, evaluate, export
from training import checkpoint as runs
from training.cases import Case, Scan
from training.methods import WINDOW
from training.rank import curve_png, probabilities
from training.unet import UNet
from trtseg import Segmenter, _core, build_engines, models, reference
from trtseg.engines.base import Net, logits_of
from trtseg.engines.calibration import FILE, read_slices, references
from trtseg.engines.precision import FP32
from trtseg.engines.unet import UNetEngine
from trtseg.errors import ArgumentError, InputError, ModelError, OutputError
from trtseg.metrics.ranking import roc
from trtseg.phantom import abdomen

SPACING = (40.0, 6.0, 6.0)
PROVENANCE = {"version": "1", "trained_on": "x", "licence": "y"}


def checkpoints(method, folder):
    """Untrained nets as checkpoints of ``method``, in the order in which export wants them."""

    def save(name, built, **settings):
        torch.manual_seed(3)
        path = folder / f"{name}.pt"
        chosen = runs.Settings(name, size=32, width=4, depth=2, compile=False, **settings)
        nets = runs.build(chosen, built)
        with torch.no_grad():  # so that about half of the pixels are positive
            for net in nets.nets.values():
                net.head.bias.zero_()
        torch.save({"settings": vars(chosen), "result": nets.nets.state_dict()}, path)
        return path

    if method != "sequential":
        return [save(method, None)]
    liver = save("liver", None)
    method = runs.load(liver)[0]
    return [liver, save("tumour", method, liver=runs.fingerprint(method.nets))]


@pytest.fixture(scope="module", params=["one-step", "sequential", "joint"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    paths = checkpoints(request.param, folder)
    thresholds = {} if request.param == "one-step" else {"tumour": 0.4}
    said = []
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True, action="always") as warned,
    ):
        patch.setattr(logging.getLogger("torch.onnx._internal.exporter._registration"), "handle", said.append)
        spec = export.export(paths, folder / "model", thresholds, PROVENANCE)
    # What PyTorch's exporter says of a package that no net needs, and of its own code, no reader can change.
    assert (said, warned) == ([], [])
    return request.param, paths, spec, folder / "model"


def test_the_folder_holds_what_its_manifest_says(exported):
    method, _, spec, folder = exported
    roles = ["one-step"] if method == "one-step" else ["liver", "tumour"]
    assert models.find(folder).spec == spec
    assert sorted(spec.sha256) == sorted(f"{role}{end}" for role in roles for end in (".onnx", ".fp16.onnx"))
    assert [net.window for net in spec.nets] == [WINDOW[role] for role in roles]
    assert [net.threshold for net in spec.nets] == ([0.5] if method == "one-step" else [0.5, 0.4])
    for name in spec.sha256:
        assert b".py" not in (folder / name).read_bytes()  # no source paths in the file


def test_ranking_assumes_the_spacing_that_the_scores_assume(monkeypatch):
    """Else slices of unknown spacing lie otherwise on the net's grid for the ROC curve than for the Dice."""
    phantom = abdomen(shape=(4, 64, 64), spacing=SPACING, lesions=2)
    scan = Scan(phantom.ct, phantom.labels, (5.0, np.nan, np.nan), range(4))
    seen = []
    monkeypatch.setattr(evaluate, "probabilities", lambda files, scan: seen.append(scan.spacing) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.ranking("default", [Case("a", "lits", "A", lambda: scan)], None)
    assert seen == [(5.0, *evaluate.ASSUMED[1:])]


def test_what_a_ranking_leaves_undefined_is_a_dash(monkeypatch):
    """A net that finds no liver has no probability between 0.01 and 0.99, and none inside the mask."""
    phantom = abdomen(shape=(4, 64, 64), spacing=SPACING, lesions=2)
    case = Case("a", "lits", "A", lambda: Scan(phantom.ct, phantom.labels, SPACING, range(4)))
    truth = np.array([True, False, False, False])

    def ranking(p, inside):
        monkeypatch.setattr(evaluate, "probabilities", lambda files, scan: (np.float32(p), truth, inside))
        return evaluate.ranking("default", [case], None)

    nothing = ranking([0, 0, 0, 0], np.zeros(4, bool))
    assert "| all pixels | 0.5000 | 1.0000 | 0.500 | 0.000 |" in nothing
    assert "| probability in [0.01, 0.99] | – | 0.0000 | – | – |" in nothing
    assert nothing.endswith("| pixels |\n|---|---|---|\n\nExpected calibration error –.")
    some = ranking([0.75, 0.25, 0.25, 0], np.array([True, True, True, False]))
    assert some.endswith(
        "|---|---|---|\n| 0.250 | 0.000 | 2 |\n| 0.750 | 1.000 | 1 |\n\nExpected calibration error 0.2500."
    )


def test_the_picture_of_a_case_says_which_case_it_is(exported, monkeypatch, tmp_path):
    *_, folder = exported
    phantom = abdomen(shape=(6, 64, 64), spacing=SPACING, lesions=2)
    case = Case("volume-7", "lits", "p", lambda: Scan(phantom.ct, phantom.labels, SPACING, range(6)))
    names = []
    monkeypatch.setattr(
        evaluate, "disagreement_png", lambda volume, *_: names.append(volume.name) or b"picture"
    )
    evaluate.evaluate(Segmenter(folder), str(folder), [case], tmp_path, 1)
    assert names == ["volume-7"]
    assert (tmp_path / "volume-7.png").read_bytes() == b"picture"


def test_the_exported_model_says_what_the_checkpoint_says(exported):
    """Through prepare, engine and gate of trtseg on one side, through PyTorch on the other."""
    method, paths, spec, folder = exported
    phantom = abdomen(shape=(4, 64, 64), spacing=SPACING, lesions=2)
    scan = Scan(phantom.ct, phantom.labels, SPACING, range(4))
    p, truth, inside = probabilities(models.find(folder), scan)
    hu, _ = reference.prepare(phantom.ct, spec.nets[0].fit_slice((64, 64), (6.0, 6.0)), spec.nets[0].window)
    loaded, _ = runs.load(paths[-1], paths[0] if len(paths) == 2 else None)
    with torch.no_grad():
        liver, expected = loaded.probabilities(torch.from_numpy(hu))
    sure = (liver.numpy() - 0.5).__abs__() > 1e-3  # at the very threshold of the gate, rounding decides
    assert np.abs(p.reshape(expected.shape) - expected.numpy())[sure].max() < 1e-3
    assert truth.sum() == (phantom.labels[:, 1::2, 1::2] == 2).sum()
    with torch.no_grad():
        labels = loaded.labels(torch.from_numpy(hu)).numpy().ravel()
    assert inside.any()
    assert not inside.all() or method != "one-step"  # whose probability is above 0 everywhere
    assert (inside != (labels >= 1)).sum() <= 2  # at the very threshold
    result = Segmenter(folder).segment(phantom.ct, spacing=SPACING)
    assert result.labels.shape == phantom.ct.shape


@pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")
def test_trtsegs_own_engine_runs_a_net_of_eights(tmp_path):
    torch.manual_seed(0)
    net, spec = UNet(3, width=8, depth=2, stem=24).eval(), tiny.spec("one-step", size=(48, 32))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.2, 1.0)
    export.write_onnx(export.export_onnx(net, spec), tmp_path / "net.onnx")
    x = torch.rand(2, 1, *spec.size)
    with torch.no_grad():
        expected = net.double()(x.double()).numpy()
    engine = UNetEngine(Net(spec, FP32, (tmp_path / "net.onnx").read_bytes()))
    assert np.abs(logits_of(engine, x.numpy()) - expected).max() < 1e-5  # measured: 1e-6


def test_fp16_files_build_as_engines_without_a_gpu(exported, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    _, _, spec, folder = exported
    built = build_engines(folder, target="sm_86", batch=1, output=tmp_path)
    assert len(built) == len(spec.nets)
    assert all(entry.path.stat().st_size > 10_000 for entry in built)


def slices_of(group, *, source="lits_png", spacing=(np.nan,) * 3, **options):
    """A case of eight slices, of which every other has lesions."""

    def read():
        phantom = abdomen(shape=(8, 64, 64), spacing=(20.0, 6.0, 6.0), seed=ord(group), lesions=4)
        label = np.where(np.arange(8)[:, None, None] % 2, phantom.labels, phantom.labels > 0).astype(np.uint8)
        return Scan(phantom.ct, label, spacing, range(8))

    return Case(f"case{group}", source, group, read, **options)


class TestCalibration:
    """Slices that go into the model's folder."""

    def test_are_of_training_patients_whose_licence_allows_it(self):
        cases = [slices_of(group) for group in "ABC"]  # A validates
        cases += [
            slices_of("D", trainable=False),
            slices_of("E", source="chaos"),
            slices_of("F", held_out=True),
        ]
        chosen = calibration.choose(cases)
        assert sorted(name.split()[0] for name, _ in chosen) == ["caseB", "caseB", "caseC", "caseC"]
        for group in "BC":
            scan = next(case for case in cases if case.group == group).read()
            tumour, liver = ((scan.label >= label).sum((1, 2)) for label in (2, 1))
            most, well = int(tumour.argmax()), int(np.where(tumour == 0, liver, 0).argmax())
            names = {name for name, _ in chosen if group in name}
            assert names == {f"case{group} slice {most}", f"case{group} slice {well}"}
        with pytest.raises(InputError, match="no slices with liver of training patients"):
            calibration.choose(cases[:1])

    def test_are_stored_with_the_references_logits(self, exported, tmp_path):
        *_, spec, folder = exported
        copy = shutil.copytree(folder, tmp_path / "model")
        assert "4 slices" in calibration.add(copy, [slices_of(group) for group in "BC"])
        files = models.find(copy)
        assert files.spec.nets == spec.nets
        assert {k: v for k, v in files.spec.sha256.items() if k != FILE} == spec.sha256
        slices, first = read_slices(files), spec.nets[0]
        scan = slices_of("B").read()
        at = int((scan.label == 2).sum((1, 2)).argmax())
        grid, _ = reference.prepare(scan.hu[at : at + 1], first.fit_slice((64, 64), (1.0, 1.0)), first.window)
        assert (slices.hu == grid).all((1, 2)).any()
        assert "caseB slice" in slices.about
        for role, found in references(files).items():
            shown = np.broadcast_to(found.images > 0, found.logits.shape)
            difference = found.logits.clip(-5, 5) - slices.logits[role].clip(-5, 5)
            assert np.abs(difference[shown]).max() < 0.01


def test_a_size_must_fit_both_nets(tmp_path):
    liver, _ = checkpoints("sequential", tmp_path)
    behind, _ = runs.load(liver)
    deep = runs.Settings("tumour", size=32, width=4, depth=3, liver=runs.fingerprint(behind.nets))
    runs.save(tmp_path / "deep.pt", deep, {"result": runs.build(deep, behind).nets.state_dict()})
    with pytest.raises(ArgumentError, match="size: got 36; expected a multiple of 8, for nets of depth 3"):
        export.export([liver, tmp_path / "deep.pt"], tmp_path / "m", {}, PROVENANCE, size=36)


def test_nets_that_do_not_belong_together_are_refused(tmp_path):
    liver, tumour = checkpoints("sequential", tmp_path)
    with pytest.raises(ArgumentError, match="size: got 50; expected a multiple of 4, for nets of depth 2"):
        export.export([liver, tumour], tmp_path / "m", {}, PROVENANCE, size=50)
    with pytest.raises(InputError, match="behind a liver net; name"):
        export.export([tumour], tmp_path / "m", {}, PROVENANCE)
    with pytest.raises(ArgumentError, match=r"got nets \['liver'\].*expected those of liver and tumour"):
        export.export([liver], tmp_path / "m", {}, PROVENANCE)
    other = torch.load(tumour, weights_only=True)
    other["settings"]["pixel_mm"] = 1.5
    torch.save(other, tmp_path / "kit.pt")
    with pytest.raises(
        InputError, match=r"is a net of pixels over the field of view; expected pixels of 1.5 mm aro"
    ):
        export.export([liver, tmp_path / "kit.pt"], tmp_path / "m", {}, PROVENANCE)
    behind = torch.load(liver, weights_only=True)
    behind["settings"]["pixel_mm"] = 1.5
    torch.save(behind, tmp_path / "behind.pt")
    with pytest.raises(ArgumentError, match=r"\(32, 0\.0\), \(32, 1\.5\)\]; expected .* of one grid"):
        export.export(
            [liver, tmp_path / "kit.pt"], tmp_path / "m", {}, PROVENANCE, behind=tmp_path / "behind.pt"
        )
    assert not (tmp_path / "m").exists()


def test_nothing_of_the_model_that_was_there_stays(tmp_path, monkeypatch):
    """A file for a precision that the new model does not have would be of the old one."""
    for name in ("liver.onnx", "liver.int8.onnx", "one-step.onnx", FILE, "notes.txt", "resnet50.onnx"):
        (tmp_path / name).write_bytes(b"of the old model")
    write_no_nets(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    spec = export.export(checkpoints("sequential", tmp_path / "runs"), Path(), {}, PROVENANCE)
    assert spec.name == tmp_path.name
    assert {path.name for path in tmp_path.iterdir()} == {
        *spec.sha256,
        "model.json",
        "notes.txt",
        "resnet50.onnx",
        "runs",
    }


def test_a_liver_net_that_was_trained_on_needs_no_other_tumour_net(tmp_path, monkeypatch):
    liver, tumour = checkpoints("sequential", tmp_path)
    later = torch.load(liver, weights_only=True)
    later["result"]["liver.head.bias"] += 1
    torch.save(later, tmp_path / "later.pt")
    pair = [tmp_path / "later.pt", tumour]
    with pytest.raises(InputError, match="was trained behind another liver net than"):
        export.export(pair, tmp_path / "m", {}, PROVENANCE)
    with pytest.raises(InputError, match="was trained behind another liver net than"):
        export.export(pair, tmp_path / "m", {}, PROVENANCE, behind=tmp_path / "later.pt")
    nets, _ = export.nets_of(pair, liver)
    before, _ = export.nets_of([liver, tumour])
    assert nets["liver"].head.bias == before["liver"].head.bias + 1
    assert nets["tumour"].head.bias == before["tumour"].head.bias
    given = []
    monkeypatch.setattr(export, "nets_of", lambda *checkpoints: given.append(checkpoints) or 1 / 0)
    argv = ["export", *map(str, pair), "--behind", str(liver), "--out", str(tmp_path / "m")]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(ZeroDivisionError):
        export.main()
    assert given == [(pair, liver)]


@pytest.mark.parametrize("role", ["liver", "one-step"])
def test_a_file_that_differs_is_refused(tmp_path, role):
    torch.manual_seed(0)
    spec = tiny.spec(role)
    net, other = (UNet(spec.channels, width=4, depth=2).eval() for _ in range(2))
    export.write_onnx(export.export_onnx(other, spec), tmp_path / "net.onnx")
    x = np.random.default_rng(0).random((2, 1, 64, 64), np.float32)
    with pytest.raises(ModelError, match="does not agree"):
        export.check_parity(net, tmp_path / "net.onnx", x, spec, half=False)
    assert " 0 of " in export.check_parity(other, tmp_path / "net.onnx", x, spec, half=False)


def test_fp16_that_changes_which_class_wins_is_refused(tmp_path):
    """Around 300 neighbouring FP16 numbers are 0.25 apart: 300.12 and 300 become one."""
    torch.manual_seed(0)
    spec, net = tiny.spec("one-step"), UNet(3, width=4, depth=2).eval()
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([300.0, 300.12, 299.9]))
        net.head.weight.mul_(0.01)
    model = export.export_onnx(net, spec)
    export.cast(model, np.float16)
    export.write_onnx(model, tmp_path / "net.fp16.onnx")
    x = np.random.default_rng(0).random((2, 1, 64, 64), np.float32)
    with pytest.raises(ModelError, match="does not agree"):
        export.check_parity(net, tmp_path / "net.fp16.onnx", x, spec, half=True)


def test_a_threshold_for_a_net_without_one_is_refused(tmp_path):
    paths = checkpoints("one-step", tmp_path)
    with pytest.raises(ArgumentError, match="thresholds: got one for tumour"):
        export.export(paths, tmp_path / "m", {"tumour": 0.3}, PROVENANCE)
    assert not (tmp_path / "m").exists()


def test_what_is_refused_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    (path,) = checkpoints("one-step", tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    (there / FILE).write_bytes(b"slices of the old model")

    def refused(message, out, *options):
        monkeypatch.setattr("sys.argv", ["export", str(path), "--out", str(out), *options])
        with pytest.raises(SystemExit, match=message):
            export.main()

    refused("^error: pixel_mm: got -1.0; fit 'body' needs", tmp_path / "new", "--pixel-mm", "-1")
    refused("^error: .*no caseNN", tmp_path / "new", "--calibration", str(tmp_path / "nothing"))
    monkeypatch.setattr(export, "FP32_TOLERANCE", -1)
    refused("does not agree with PyTorch", tmp_path / "new")
    refused("does not agree with PyTorch", there)
    assert not (tmp_path / "new").exists()
    assert [(p.name, p.read_bytes()) for p in there.iterdir()] == [(FILE, b"slices of the old model")]


def test_evaluation_of_a_model(exported, tmp_path):
    """Tables, curve and pictures for a case with tumours, one without, and a slice without liver."""
    *_, folder = exported
    phantom = abdomen(shape=(6, 64, 64), spacing=SPACING, lesions=2)
    empty = abdomen(shape=(1, 64, 64), spacing=SPACING, liver=False)
    cases = [
        Case("ill", "x", "p", lambda: Scan(phantom.ct, phantom.labels, SPACING, range(6), ("Lies on its face.",))),
        Case("well", "x", "q", lambda: Scan(phantom.ct, (phantom.labels > 0).astype(np.uint8), SPACING, range(6)),
             labels_tumour=False),
        Case("png", "x", "s", lambda: Scan(phantom.ct, phantom.labels, (np.nan,) * 3, range(6))),
        Case("leg", "x", "r", lambda: Scan(empty.ct, np.zeros(empty.ct.shape, np.uint8), (np.nan, 6.0, 6.0), [0]),
             body_part="pelvis"),
    ]  # fmt: skip
    tmp_path /= "made"
    text = evaluate.evaluate(Segmenter(folder), str(folder), cases, tmp_path, 1)
    assert "not for clinical use" in text.lower()
    assert "| ill |" in text
    assert "x/ill: Lies on its face." in text
    # What is called tumour is said of both cases; how right it is, only where the truth knows tumours.
    result = Segmenter(folder).segment(phantom.ct, spacing=SPACING)
    called = f"{result.tumour_ml:.1f} | {len(result.lesions)} |"
    assert f"| ill | {called} 0." in text
    assert f"| well | {called} – |" in text
    assert "the spacing is not known of x/png: where it is not, (5.0, 0.75, 0.75) mm are assumed" in text
    assert "| slices without liver | 1 |" in text
    assert "| all pixels |" in text
    assert "| probability in [0.01, 0.99] |" in text
    assert (tmp_path / "scores.md").read_text() == text
    assert {path.name for path in tmp_path.iterdir()} >= {"roc.png", "scores.json", "scores.md"}
    with pytest.raises(OutputError, match=r"--output: .*scores\.md cannot be created"):
        evaluate.evaluate(Segmenter(folder), str(folder), cases, tmp_path / "scores.md", 1)


def test_fewer_pictures_than_none_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate", "--lits", "none", "--worst", "-1"])
    with pytest.raises(SystemExit, match=r"^error: worst: got -1; expected 0 or more pictures"):
        evaluate.main()


def test_a_case_that_cannot_be_read_is_named_also_where_only_single_slices_are_scored(exported):
    *_, folder = exported
    phantom = abdomen(shape=(6, 64, 64), spacing=SPACING, lesions=2)
    loose = Scan(phantom.ct, phantom.labels, SPACING, range(6), cells=np.zeros((0, 6), np.int16))

    def bad():
        raise InputError("bad.nii: is cut off")

    cases = [Case("bad", "x", "p", bad), Case("single", "x", "q", lambda: loose)]
    text = evaluate.evaluate(Segmenter(folder), str(folder), cases, None, 0)
    assert "x/bad was left out: " in text
    assert "is cut off" in text


def test_a_curve_is_drawn_where_nothing_is_defined(tmp_path, monkeypatch):
    legends = []
    monkeypatch.setattr(Axes, "legend", lambda self, **_: legends.append(self.get_legend_handles_labels()[1]))
    curve_png(tmp_path / "roc.png", {"none": roc(np.zeros(4, np.float32), np.zeros(4, bool))})
    assert legends == [["none: AUC –"]]
    assert (tmp_path / "roc.png").read_bytes()[:4] == b"\x89PNG"
