"""How fast trtseg is on a GPU, beside PyTorch in the same process, and beside the floor of the GPU.

    python -m benchmarks.gpu [--json FILE] [--model default] [--runtime auto] [--slices 200] [--runs 2000] [--compile]
                             [--only NAME ...]

A phantom of 200 slices of 512x512 is segmented by each candidate, from host memory to host memory and from GPU memory
to GPU memory, and slices with liver one by one. Candidates take turns. Their labels are compared.

Candidates: trtseg; eager-fp16-host: PyTorch, with NumPy between the nets; eager-fp16: PyTorch, its ops on the GPU;
torch-graphs: the same in CUDA graphs. With --compile, which takes minutes: trtseg-compiled, the runtime torch with
engines that are built first; trtseg-3-lanes, the same in three lanes instead of two; torch-compile, PyTorch's nets and
ops compiled, in CUDA graphs.
All run FP16 nets, channels last. Clocks are not locked: look at the shortest time, too.

The exit code is 2 without a GPU, and 1 if a part failed: the others went on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_floor
from training.program import parser_of, plain_errors
from trtseg import Segmenter, __version__, _core, build_engines, models
from trtseg.cascade import gpu
from trtseg.engines.nvidia.driver import find_driver
from trtseg.io.atomic import atomic
from trtseg.io.folders import cache_folder
from trtseg.metrics.overlap import overlap
from trtseg.phantom import abdomen

BATCH = 16
PACKAGES = ("numpy", "torch", "triton", "tensorrt", "tensorrt-rtx-cu13", "pycuda")
COMPILED = ("trtseg-compiled", "trtseg-3-lanes", "torch-compile")
CANDIDATES = ("trtseg", *COMPILED[:2], "eager-fp16-host", "eager-fp16", "torch-graphs", "torch-compile")
RECORDED = ("runtime", "slices", "runs", "repeats")  # of the arguments; no paths
SIZE, FIELD_MM, LENGTH_MM = 512, 384.0, 400.0
SPACING = (FIELD_MM / SIZE, FIELD_MM / SIZE)
LEAST_DICE = 0.99  # of the liver: a candidate with other labels runs another net

# Opens a candidate for a batch; it has `run(hu, out)`.
Open = Callable[[int], Any]


class Trtseg:
    """A Segmenter as a candidate; on the GPU in the order of the default stream, which is PyTorch's, too."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def run(self, hu: Any, out: Any) -> None:
        """Label slices ``hu`` into ``out``."""
        self.segmenter.label(hu, spacing=SPACING, out=out)


def open_compiled(model: str, batch: int, lanes: int = gpu.LANES) -> Trtseg:
    """Trtseg by the runtime torch with compiled engines, built where the folder of the cache has none.

    They lie apart, so that the other candidate finds none.
    """
    with _environment("TRTSEG_CACHE", str(cache_folder() / "compiled")), _with_lanes(lanes):
        for built in (False, True):
            if built:
                build_engines(model, runtime="torch", batch=batch)
            segmenter = Segmenter(model, device="cuda", batch=batch, runtime="torch")
            engines = segmenter.provenance["engines"]
            if all(engine.get("kernels") == "compiled" for engine in engines.values()):
                return Trtseg(segmenter)
            segmenter.close()
    raise RuntimeError(f"PyTorch's own operators run instead: {engines}")


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _with_lanes(lanes: int) -> Iterator[None]:
    """What opens its nets meanwhile has so many lanes."""
    before, gpu.LANES = gpu.LANES, lanes
    try:
        yield
    finally:
        gpu.LANES = before


# ---- Measuring -----------------------------------------------------------------------------------------------------


def rounds(calls: Mapping[str, Callable[[], object]], repeats: int, turn: int = 1) -> dict[str, list[int]]:
    """Nanoseconds of each call; candidates take turns of ``turn`` calls, so that what drifts drifts for all."""
    times: dict[str, list[int]] = {name: [] for name in calls}
    gc.collect()
    gc.freeze()  # objects of all the libraries are not to be searched while something is timed
    for number in range(0, repeats, turn):
        for name, call in calls.items():
            for _ in range(min(turn, repeats - number)):
                start = time.perf_counter_ns()
                call()
                times[name].append(time.perf_counter_ns() - start)
    gc.unfreeze()
    return times


def summary(nanoseconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds; a percentile is a time that was measured, the next above."""
    ms = np.asarray(nanoseconds, np.float64) / 1e6
    p50, p99 = (float(np.percentile(ms, q, method="higher")) for q in (50, 99))
    return {
        "runs": len(ms),
        "min_ms": float(ms.min()),
        "median_ms": float(np.median(ms)),
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": float(ms.max()),
    }


class Benchmark:
    """Measures candidates on a volume; ``data`` has everything found, and goes to a file after every part."""

    def __init__(self, opened: dict[str, Open], hu: np.ndarray, path: Path | None = None) -> None:
        self._opened, self.hu, self._path = opened, hu, path
        self.data: dict[str, Any] = {"parts": {}, "agreement": {}}
        self.labels: np.ndarray | None = None  # of the first candidate

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a part; what it returns, or None where it failed."""
        start, result, status = time.perf_counter(), None, "ok"
        try:
            result = work()
        except Exception as error:
            traceback.print_exc()
            status = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"[:200]
        self.data["parts"][name] = {"status": status, "seconds": round(time.perf_counter() - start, 3)}
        print(f"{name}: {status}", file=sys.stderr, flush=True)
        self.write()
        return result

    def write(self) -> None:
        """Write what has been found."""
        if self._path is not None:
            with atomic(self._path) as (path,):
                path.write_text(json.dumps(self.data, indent=2) + "\n", encoding="utf-8")

    def volume(self, repeats: int, device: str = "cuda") -> None:
        """Time the volume, host to host and, on a GPU, from GPU memory to GPU memory."""
        out = np.empty(self.hu.shape, np.uint8)
        runners = {name: self.part(name, lambda name=name: self._warm(name, out)) for name in self._opened}
        runners = {name: runner for name, runner in runners.items() if runner is not None}
        calls = {name: functools.partial(runner.run, self.hu, out) for name, runner in runners.items()}
        self.data["host"] = _summaries(rounds(calls, repeats))
        if device == "cuda":
            import torch

            hu = torch.from_numpy(self.hu).cuda()
            labels = torch.zeros(hu.shape, dtype=torch.uint8, device="cuda")
            on_gpu = {name: r for name, r in runners.items() if not name.endswith("-host")}
            for name, runner in on_gpu.items():
                runner.run(hu, labels)
                self._check(f"{name}, GPU to GPU", labels.cpu().numpy())
            calls = {name: functools.partial(_run_on_gpu, r, hu, labels) for name, r in on_gpu.items()}
            self.data["device"] = _summaries(rounds(calls, repeats))

    def slices(self, runs: int) -> None:
        """Time slices with liver one by one, host to host: both nets run."""
        assert self.labels is not None
        liver = np.flatnonzero((self.labels > 0).any((1, 2)))
        out, calls = np.empty((1, *self.hu.shape[1:]), np.uint8), {}
        for name, open_one in self._opened.items():
            if self.data["parts"][name]["status"] != "ok":
                continue
            runner = self.part(f"{name}, batch 1", functools.partial(open_one, 1))
            if runner is None:
                continue
            turns = itertools.cycle([self.hu[z : z + 1] for z in liver])
            calls[name] = lambda r=runner, t=turns: r.run(next(t), out)
            for _ in range(3):
                calls[name]()
        self.data["slice"] = _summaries(rounds(calls, runs, turn=100))

    def _warm(self, name: str, out: np.ndarray) -> Any:
        runner = self._opened[name](BATCH)
        for _ in range(2):
            out.fill(255)
            runner.run(self.hu, out)
        self._check(name, out)
        return runner

    def _check(self, name: str, labels: np.ndarray) -> None:
        """Compare labels with those of the first candidate: the time of another net is worth nothing."""
        if self.labels is None:
            self.labels = labels.copy()
        dice = {
            "liver": overlap(labels > 0, self.labels > 0).dice,
            "tumour": overlap(labels == 2, self.labels == 2).dice,
        }
        self.data["agreement"][name] = dice
        if labels.max() > 2 or dice["liver"] < LEAST_DICE:
            raise RuntimeError(f"other labels than the first candidate: Dice {dice}")


def _run_on_gpu(runner: Any, hu: Any, out: Any) -> None:
    import torch

    runner.run(hu, out)
    torch.cuda.synchronize()


def _summaries(times: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """A summary of each candidate, and its median in medians of trtseg."""
    found = {name: summary(samples) for name, samples in times.items()}
    for one in found.values():
        one["times_trtseg"] = one["median_ms"] / found.get("trtseg", one)["median_ms"]
    return found


# ---- Results -------------------------------------------------------------------------------------------------------


def table(data: dict[str, Any], names: Sequence[str]) -> str:
    """The times of all candidates as a table, and the rest below it."""
    lines = [
        "| candidate | host, ms | x trtseg | GPU, ms | slice p50 | p99 | Dice liver | tumour |",
        "|---" * 8 + "|",
    ]
    for name in names:
        if (status := data["parts"][name]["status"]) != "ok":
            lines.append(f"| {name} | {status} |")
            continue
        host, device, one = (data.get(part, {}).get(name) for part in ("host", "device", "slice"))
        cells = [f"{t['median_ms']:.2f} ({t['min_ms']:.2f})" if t else "-" for t in (host, device)]
        cells.insert(1, f"{host['times_trtseg']:.2f}" if host else "-")
        cells += [f"{one[key]:.3f}" if one else "-" for key in ("p50_ms", "p99_ms")]
        cells += [f"{dice:.4f}" for dice in data["agreement"][name].values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(
        "\nVolumes: median (shortest). Slices: host to host, one by one. Dice: with the first candidate."
    )
    for part in ("stages", "stages, compiled", "floor"):
        if part in data:
            lines.append(f"{part}: " + ", ".join(f"{name} {value:.3g}" for name, value in data[part].items()))
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where and with what this ran."""
    import torch

    driver, versions = find_driver(), {"python": platform.python_version(), "trtseg": __version__}
    versions |= {"CUDA of PyTorch": torch.version.cuda, "CUDA of trtseg": _core.build_info()["cuda_version"]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": {"name": torch.cuda.get_device_name(0), "driver": driver.version, "CUDA": driver.cuda},
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="all results; written after every part")
    parser.add_argument("--model", default="default")
    parser.add_argument("--runtime", default="auto", help="of trtseg: tensorrt, tensorrt-rtx, torch, auto")
    parser.add_argument("--slices", type=int, default=200, help=f"of the volume, {BATCH} or more")
    parser.add_argument("--runs", type=int, default=2000, help="slices that each candidate labels one by one")
    parser.add_argument("--repeats", type=int, default=10, help="of the volume")
    parser.add_argument("--compile", action="store_true", help="candidates that compile, too")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, metavar="NAME", help="these candidates")
    args = parser.parse_args(argv)
    args.only = args.only or [name for name in CANDIDATES if args.compile or name not in COMPILED]
    if args.slices < BATCH:
        parser.error(f"--slices: got {args.slices}; expected {BATCH} or more")
    return args


@plain_errors()
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether every part worked."""
    args = arguments(argv)
    import torch

    if not torch.cuda.is_available() or not _core.build_info()["cuda"]:
        print("benchmarks.gpu: needs a GPU, PyTorch with CUDA and trtseg built with CUDA", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = True
    files, drawn = models.find(args.model), -(-args.slices // 4)
    # A slice is drawn once for four in a row: drawing takes long.
    ct = abdomen((drawn, SIZE, SIZE), (LENGTH_MM / drawn, *SPACING)).ct
    hu = np.repeat(ct, 4, axis=0)[: args.slices]
    from benchmarks.gpu_torch import comparisons

    @functools.cache
    def ours(batch: int) -> Trtseg:
        return Trtseg(Segmenter(args.model, device="cuda", batch=batch, runtime=args.runtime))

    fit = files.spec.nets[0].fit_slice((SIZE, SIZE), SPACING)
    opened = {
        "trtseg": ours,
        "trtseg-compiled": functools.cache(functools.partial(open_compiled, args.model)),
        "trtseg-3-lanes": functools.cache(functools.partial(open_compiled, args.model, lanes=3)),
        **comparisons(files, fit),
    }
    opened = {name: open_one for name, open_one in opened.items() if name in args.only}
    benchmark = Benchmark(opened, hu, args.json)
    data = benchmark.data
    data |= machine() | {"arguments": {name: vars(args)[name] for name in RECORDED}}
    benchmark.part("volume", lambda: benchmark.volume(args.repeats))
    if benchmark.labels is not None:
        benchmark.part("slice", lambda: benchmark.slices(args.runs))
        nets = [gpu_floor.layers(files.read(f"{net.role}.onnx")) for net in files.spec.nets]
        data["rates"] = benchmark.part("rates", gpu_floor.rates)
        if data["rates"] is not None:
            data["floor"] = gpu_floor.floor(benchmark.labels, BATCH, nets, data["rates"])
        most = int((benchmark.labels > 0).sum((1, 2)).argmax())
        chunk = hu[min(most, len(hu) - BATCH) :][:BATCH]
        for name, key in (("trtseg", "stages"), ("trtseg-compiled", "stages, compiled")):
            if name in data.get("host", {}):
                segmenter = opened[name](BATCH).segmenter
                found = benchmark.part(key, lambda s=segmenter: s.stages(chunk, spacing=SPACING))
                data[key] = {stage: 1e3 * seconds for stage, seconds in (found or {}).items()}
                data.setdefault("provenance", {})[name] = segmenter.provenance
    benchmark.write()
    print(f"{data['machine']}; {data['date']}\n{data['versions']}\n\n{table(data, list(opened))}")
    return 1 if any(part["status"].startswith("failed") for part in data["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
