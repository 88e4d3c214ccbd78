"""benchmarks.compare: its tables say what the figures say, its processes behave, and the peers label as trtseg does."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import compare, compare_cts, compare_table
from benchmarks.compare_process import Process
from benchmarks.peers.contenders import CONTENDERS, chosen
from trtseg import PostProcess, Segmenter, models
from trtseg.errors import ArgumentError
from trtseg.phantom import abdomen

PEERS = Path(__file__).resolve().parents[1] / ".venv/peers/bin/python"
SPACING = (40.0, 0.8, 0.8)


def row(*seconds: float, liver: float | None = 0.99, peak: int = 500) -> dict:
    return {
        "seconds": list(seconds),
        "start_s": 3.0,
        "peak_mb": peak,
        "dice": {"liver": liver, "tumour": None},
    }


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def data() -> dict:
    runs = {
        "trtseg-fp32": row(3.0, 2.0, 2.5),
        "trtseg-int8": row(1.2, 0.8, 1.0),
        "torch": row(7.0, 6.0, 9.0),
        "torch-last": row(2.0),
        "onnxruntime": row(4.0, liver=0.5),
        "onnxruntime-int8": row(1.5),
        "nnunet": row(9.0),
        "nnunet-planned": row(7.0),
        "nnunet-mirroring": row(30.0),
        "monai": {"seconds": [], "error": "it ended: no word"},
    }
    return {
        "settings": {"model": "default", "threads": 2, "slices": None},
        "machine": {"cpu": "Some CPU", "native": ["int8"], "python": "3.11"},
        "versions": {"torch": "2.13"},
        "cts": {
            "chaos3": {"shape": [78, 512, 512], "load": 0.1, "sessions": 1},
            "stack800": {"shape": [800, 500, 500], "load": 0.1, "sessions": 1},
        },
        "runs": {"chaos3": runs, "stack800": {"trtseg-int8": row(10.0, peak=1100)}},
        "floor": {"chaos3": {"trtseg-int8": {"slices": [78, 30], "floor": 0.9, "rest": 0.1, "passes": 7}}},
        "latency": {"trtseg-int8": {"slices": 500, "p50": 20.0, "p99": 51.0}},
    }


def test_the_tables_say_what_the_figures_say(data):
    text = compare_table.markdown(data)
    assert (
        "| PyTorch eager FP32 | 7.00 | 6.00 to 9.00, 3 | 7.00 times | 3.0 | 500 | 0.9900 | no tumour |"
        in text
    )
    assert (
        "| ONNX Runtime FP32 | 4.00 | 4.00 to 4.00, 1 | 4.00 times | 3.0 | 500 | 0.5000 DISAGREES | no tumour |"
        in text
    )
    assert "| MONAI SliceInferer | it ended: no word |" in text
    assert "| trtseg INT8 | 1.00, 1.0 | 10.00, 1.0 |" in text
    goals = {line.split("|")[1].strip(): line.split("|")[3:5] for line in text.splitlines() if "|" in line}
    assert [cell.strip() for cell in goals["(a) PyTorch eager FP32"]] == [
        "7.00 times, PyTorch eager FP32",
        "yes",
    ]
    assert goals["(b) the best channels-last PyTorch"][1].strip() == "no"
    assert goals["(c) ONNX Runtime FP32"][0].strip() == "4.00 times, ONNX Runtime FP32"
    assert goals["(d) the best nnU-Net without mirroring"][0].strip().startswith("7.00 times")
    assert [cell.strip() for cell in goals["everything but the engines"]] == ["10.0%", "yes"]
    assert [cell.strip() for cell in goals["one slice, p50 and p99"]] == ["20.0 and 51.0 ms", "no"]
    assert [cell.strip() for cell in goals["stack800: memory beyond CT and labels"]] == ["500 MB", "no"]
    assert "(e) MONAI" not in goals
    assert "NOT QUIET" not in text
    data["cts"]["stack800"] |= {"load": 3.0, "sessions": 2}
    first, second = compare_table.markdown(data).split("stack800, 800 x 500 x 500 voxels:")
    assert "NOT QUIET: the load average was 3.0" in second
    assert "Measured in 2 sessions" in second
    assert "NOT QUIET" not in first


def test_the_chart_is_drawn(data, tmp_path):
    from PIL import Image

    compare_table.chart(data, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        shades = np.asarray(picture.convert("L"))
    assert shades.std() > 10


def test_contenders_need_their_arithmetic_or_their_name():
    assert "trtseg-int8" not in {contender.name for contender in chosen([], set())}
    assert "trtseg-int8" in {contender.name for contender in chosen([], {"int8"})}
    assert [contender.name for contender in chosen(["trtseg-int8"], set())] == ["trtseg-int8"]
    with pytest.raises(ArgumentError, match="nobody"):
        chosen(["nobody"], set())


def test_a_process_answers_and_its_memory_is_seen(tmp_path):
    program = (
        "import json, sys\n"
        "print(json.dumps({'versions': {}}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    held = bytearray(b'x') * 80_000_000\n"
        "    print(json.dumps({'seconds': 1, **json.loads(line)}), flush=True)\n"
        "    import time; time.sleep(0.2)\n"
        "    sys.exit('had enough')\n"
    )
    process = Process([sys.executable, "-c", program], 1, tmp_path / "log")
    try:
        assert process.ask(input="a") == {"seconds": 1, "input": "a"}
        with pytest.raises(RuntimeError, match="had enough"):
            process.ask(input="b")
        assert 80e6 < process.peak < 300e6
    finally:
        process.close()


def test_closing_a_process_ends_what_it_started(tmp_path):
    program = (
        "import json, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(json.dumps({'versions': {}}), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(json.dumps({'child': child.pid}), flush=True)\n"
    )
    process = Process([sys.executable, "-c", program], 1, tmp_path / "log")
    child = process.ask()["child"]
    process.close()
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    """Two slices with a liver and one without."""
    phantom = abdomen((10, 512, 512), SPACING)
    path = tmp_path_factory.mktemp("ct") / "sample.nii.gz"
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1])
    nib.save(nib.Nifti1Image(phantom.ct[[4, 5, 7]].transpose(2, 1, 0), affine), path)
    return path


def test_the_loop_of_students_labels_as_trtseg_does(ct, tmp_path):
    from benchmarks.peers import nets, onnx_runtime, student

    folder = models.find("default").folder
    with Segmenter(
        device="cpu",
        precision="fp32",
        postprocess=PostProcess(median_mm=0.0, largest_liver=False, fill_holes=False, min_tumour_ml=0.0),
    ) as segmenter:
        segmenter.segment(ct).save(tmp_path / "ours.nii.gz")
    ours = compare_cts.labels(tmp_path / "ours.nii.gz")
    assert ours.any()
    both = [
        [
            student.torch_runner(
                nets.torch_net((folder / f"{role}.onnx").read_bytes()),
                channels_last=True,
                bf16=False,
                compiled=False,
            )
            for role in ("liver", "tumour")
        ],
        [onnx_runtime.runner(folder / f"{role}.onnx", 1) for role in ("liver", "tumour")],
    ]
    for kind in both:
        student.label(
            ct, tmp_path / "theirs.nii.gz", compare_cts.describe(ct, "default"), kind, nets.specs(folder)
        )
        assert compare_cts.dice(compare_cts.labels(tmp_path / "theirs.nii.gz"), ours)["liver"] > 0.98


def test_both_nets_as_one_are_the_nets(ct):
    import torch

    from benchmarks.peers import nets

    folder = models.find("default").folder
    files = [(folder / f"{role}.onnx").read_bytes() for role in ("liver", "tumour")]
    specs = nets.specs(folder)
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        mask = nets.torch_net(files[0])(x) > specs[0]["logit"]
        x2 = ((x * 400 - 160 + 40) / 240).clamp(0, 1) * mask  # windows -160 to 240 and -40 to 200
        tumour = mask & (nets.torch_net(files[1])(x2) > specs[1]["logit"])
        labels = nets.both(files, specs)(x).argmax(1, keepdim=True)
    assert torch.equal(labels, mask.long() + tumour)


def test_a_contender_that_failed_is_tried_again_by_the_next_call_and_not_by_this_one(
    ct, tmp_path, monkeypatch
):
    (tmp_path / ct.name).write_bytes(ct.read_bytes())
    opened = []

    class Played:
        started, peak, versions = time.perf_counter(), 0, {}

        def ask(self, output, **job):
            if output and not Path(output).exists():
                image = nib.load(ct)
                nib.save(nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine), output)
            return {"seconds": 1.0}

        def close(self):
            pass

    def played(contender):
        opened.append(contender.name)
        if contender.name == "torch" and opened.count("torch") == 1:
            raise RuntimeError("it ended: no memory")
        return Played()

    args = argparse.Namespace(
        model="default", threads=1, slices=None, json=tmp_path / "figures.json", fresh=False
    )
    args.ct, args.repeats, args.budget, args.work = ["sample"], 2, 100.0, tmp_path
    told = []
    for _ in range(3):
        comparison = compare.Comparison(args)
        monkeypatch.setattr(comparison, "open", played)
        comparison.measure("sample", chosen(["torch", "onnxruntime"], set()))
        runs = json.loads(args.json.read_text())["runs"]["sample"]
        told.append({name: (row.get("error"), row["seconds"]) for name, row in runs.items()})
    done = (None, [1.0, 1.0])
    assert told == [
        {"torch": ("it ended: no memory", []), "onnxruntime": done},
        *[{"torch": done, "onnxruntime": done}] * 2,
    ]
    assert (opened.count("torch"), opened.count("onnxruntime")) == (2, 1)


@pytest.mark.slow
def test_the_peers_label_a_phantom_as_trtseg_does_and_a_run_goes_on_where_it_was(ct, tmp_path, capsys):
    if not PEERS.exists():
        pytest.skip("no environment of the peers: make peers")
    (tmp_path / ct.name).write_bytes(ct.read_bytes())
    names = ["trtseg-fp32", "torch", "onnxruntime", "nnunet", "nnunet-planned", "monai"]
    options = [str(tmp_path), "--ct", "sample", "--repeats", "1", "--threads", "1", "--python", str(PEERS)]
    options += ["--work", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    compare.main([*options, "--only", *names[:3]])
    first = json.loads((tmp_path / "figures.json").read_text())["runs"]["sample"]
    compare.main([*options, "--only", *names])
    runs = json.loads((tmp_path / "figures.json").read_text())["runs"]["sample"]
    assert set(runs) == set(names)
    assert not [name for name, found in runs.items() if "error" in found]
    assert all(runs[name] == first[name] for name in first)
    assert all(runs[c.name]["dice"]["liver"] > 0.95 for c in CONTENDERS if c.name in names and not c.differs)
    assert "DISAGREES" not in capsys.readouterr().out
