"""How fast trtseg is on a GPU, beside PyTorch and ONNX Runtime in the same process, and beside what the GPU can do.

    python -m benchmarks.gpu [--json FILE] [--model default] [--runtime auto] [--slices 200] [--runs 2000]
                             [--without torch-compile,onnxruntime]

A phantom of 200 slices of 512x512, and the same at the size of the nets, is segmented by each candidate, from host
memory to host memory and from GPU memory to GPU memory, and slices with liver one by one. Candidates take turns. Those
that compile for minutes come last, beside trtseg and eager FP16 once more. Every candidate's labels are compared.

Candidates: trtseg; eager-*: PyTorch, channels last, its ops on the GPU; eager-*-host: those on the host, as with NumPy
between the nets; torch-graphs: eager FP16 in CUDA graphs; onnxruntime: FP16; torch-compile, torch-compile-graphs: FP16.
Other parts: slice, stages, floor, cold-start. Clocks are not locked: look at the shortest time, too.

The exit code is 2 without a GPU or what drives it, and 1 if a part failed: the others went on.
"""

from __future__ import annotations

import argparse
import functools
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_measure as measure
from benchmarks.gpu_measure import Ct
from benchmarks.gpu_race import BATCH, Benchmark
from benchmarks.gpu_report import Report, goal_lines, goals, table
from trtseg import __version__, _core, models
from trtseg.engines.nvidia.driver import find_driver
from trtseg.models import ModelFiles

QUICK = (
    "trtseg",
    "eager-fp32-host",
    "eager-fp16-host",
    "eager-fp32",
    "eager-fp16",
    "torch-graphs",
    "onnxruntime",
)
SLOW = ("torch-compile", "torch-compile-graphs")
BESIDE = ("trtseg", "eager-fp16")
OTHERS = ("slice", "floor", "stages", "cold-start")
PACKAGES = ["numpy", "torch", "triton", "tensorrt", "tensorrt-rtx-cu13", "pycuda", "openvino"]
PACKAGES += ["onnxruntime", "onnxruntime-gpu"]


def missing(*, trtseg: bool) -> str | None:
    """What is not here without which nothing can be measured, or None."""
    try:
        import torch
    except ModuleNotFoundError:
        return "PyTorch is not installed; install one with CUDA"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} was built without CUDA; install one with CUDA"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU; run this where there is one"
    if trtseg and not _core.build_info()["cuda"]:
        return "trtseg was built without CUDA; build it where nvcc is, or leave it out with --without trtseg"
    return None


def run(args: argparse.Namespace, report: Report, files: ModelFiles) -> None:
    """All parts; those that take longest last, in case somebody ends this."""
    data = report.data
    quick, slow = ([name for name in names if name not in args.without] for names in (QUICK, SLOW))
    for name in args.without:
        report.note(name, "left out: --without")
    cts = report.part("phantom", lambda: volumes(args.slices))
    opened = report.part("nets", lambda: open_candidates(args, files))
    if cts is None or opened is None:
        return
    large = cts[0]
    data["volume"] = {"slices": len(large.hu), "batch": BATCH}
    benchmark = Benchmark(report, opened, device="cuda", repeats=args.repeats)
    for ct in cts:
        report.part(f"volume {ct.name}", functools.partial(benchmark.volume, ct, quick))
    if large.name in benchmark.labels:
        labels = benchmark.labels[large.name]
        data["volume"]["share of slices in which liver is found"] = float((labels > 0).any((1, 2)).mean())
        data["volume"]["slices in chunks with liver"] = measure.slices_with_net(labels, BATCH)
        other_parts(args, benchmark, files, cts)
    if slow:
        names = [*(name for name in BESIDE if name in quick), *slow]
        for ct in cts:
            report.part(f"volume {ct.name}, compiled", functools.partial(benchmark.volume, ct, names))
        if "slice" not in args.without and large.name in benchmark.labels:
            report.part("slice, compiled", lambda: benchmark.slices(large, names, args.runs))


def other_parts(
    args: argparse.Namespace,
    benchmark: Benchmark,
    files: ModelFiles,
    cts: Sequence[Ct],
) -> None:
    """All but the volumes."""
    from benchmarks import gpu_trtseg

    report, ct, labels = benchmark.report, cts[0], benchmark.labels
    liver = (labels[ct.name] > 0).sum((1, 2))
    most = int(liver.argmax())
    first = min(most // BATCH * BATCH, len(liver) - BATCH)
    chunk, one = ct.hu[first : first + BATCH], ct.hu[most : most + 1]
    if "slice" not in args.without:
        names = [name for name in QUICK if name not in args.without]
        report.part("slice", lambda: benchmark.slices(ct, names, args.runs))

    def keep(key: str, name: str, work: Callable[[], Any]) -> None:
        if name not in args.without and (result := report.part(name, work)) is not None:
            report.data[key] = result

    def stages() -> Any:
        return gpu_trtseg.stages(benchmark.open("trtseg", ct).segmenter, chunk, ct.spacing)

    keep("floor", "floor", lambda: floors(files, cts, labels))
    if report.status("trtseg") == "ok":
        keep("stages", "stages", stages)
        keep(
            "cold_start",
            "cold-start",
            lambda: gpu_trtseg.cold_start(args.model, args.runtime, one, ct.spacing),
        )


def open_candidates(args: argparse.Namespace, files: ModelFiles) -> dict[str, Any]:
    """What `gpu_candidates.candidates` gives, with PyTorch set up."""
    import torch

    from benchmarks.gpu_candidates import candidates

    torch.backends.cudnn.benchmark = True
    return candidates(files, args.model, args.runtime)


def volumes(slices: int) -> list[Ct]:
    """The two volumes."""
    large = measure.phantom(slices, 512)
    return [large, measure.halved(large)]


def floors(files: ModelFiles, cts: Sequence[Ct], labels: dict[str, np.ndarray]) -> dict[str, Any]:
    """What this GPU can do, and how long a volume takes at that."""
    rate = measure.rates()
    work = [measure.flops(files.read(f"{net.role}.onnx")) for net in files.spec.nets]
    return {
        "rates": rate,
        "flops_a_slice": work,
        "volumes": {
            ct.name: measure.floor(ct, labels[ct.name], BATCH, work, rate) for ct in cts if ct.name in labels
        },
    }


def machine() -> dict[str, Any]:
    """Where and with what this ran."""
    import torch

    driver = find_driver()
    versions = {"python": platform.python_version(), "CUDA of PyTorch": torch.version.cuda}
    versions |= {"CUDA of trtseg": _core.build_info()["cuda_version"], "trtseg": __version__}
    versions |= {name: _version(name) for name in PACKAGES}
    return {
        "device": {"name": torch.cuda.get_device_name(0), "driver": driver.version, "CUDA": driver.cuda},
        "versions": {name: version for name, version in versions.items() if version is not None},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="all that was found; written after every part"
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--runtime", default="auto", help="of trtseg: tensorrt, tensorrt-rtx, auto")
    parser.add_argument("--slices", type=int, default=200, help=f"of the volume, {BATCH} or more")
    parser.add_argument("--runs", type=int, default=2000, help="slices that each candidate labels one by one")
    parser.add_argument("--repeats", type=int, default=10, help="of a volume")
    parser.add_argument("--limit", type=float, default=540, help="seconds after which no further part begins")
    parser.add_argument("--without", default="", metavar="PARTS", help="names with commas between them")
    args = parser.parse_args(argv)
    args.without = [name for name in args.without.split(",") if name]
    if unknown := set(args.without) - {*QUICK, *SLOW, *OTHERS}:
        parser.error(
            f"--without: got {', '.join(sorted(unknown))}; expected {', '.join((*QUICK, *SLOW, *OTHERS))}"
        )
    for name, least in (("slices", BATCH), ("runs", 1), ("repeats", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name}: got {getattr(args, name)}; expected {least} or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and say whether all of it worked."""
    args = arguments(argv)
    problem = missing(trtseg="trtseg" not in args.without)
    if problem is not None:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 2
    files = models.find(args.model)
    if len(files.spec.nets) != 2:
        print(
            f"benchmarks.gpu: the model {args.model} has one net; this compares models of two",
            file=sys.stderr,
        )
        return 2
    report = Report(args.json, args.limit)
    report.data |= machine() | {"candidates": [*QUICK, *SLOW], "volume": {}}
    report.data["arguments"] = {name: str(value) for name, value in vars(args).items()}
    run(args, report, files)
    report.data["goals"] = goals(report.data, "512x512")
    report.save()
    device, volume = report.data["device"], report.data["volume"]
    print(f"{device['name']}, driver {device['driver']}; {report.data['date']}")
    print(", ".join(f"{name} {version}" for name, version in report.data["versions"].items()))
    print(", ".join(f"{name}: {value}" for name, value in volume.items()), end="\n\n")
    print(table(report.data), *goal_lines(report.data), sep="\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
