"""trtseg itself in `benchmarks.gpu`: as a candidate, by stages, and from a cold start."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trtseg import Segmenter, _core
from trtseg.cuda.device import download, errors, upload


class Trtseg:
    """A Segmenter for slices of one pixel spacing."""

    def __init__(self, segmenter: Segmenter, spacing: tuple[float, float]) -> None:
        self.segmenter, self._spacing = segmenter, spacing

    def run(self, hu: Any, out: Any) -> None:
        """Label slices ``hu`` into ``out``; on the GPU in the order of the default stream, which is PyTorch's, too."""
        self.segmenter.label(hu, spacing=self._spacing, out=out)


def stages(
    segmenter: Segmenter, hu: np.ndarray, spacing: tuple[float, float], repeats: int = 50
) -> dict[str, dict[str, float]]:
    """Median and shortest milliseconds of each stage of one chunk ``hu`` [batch, Y, X], launched one by one, no graph.

    The stages on the GPU are between events, and all repeats are enqueued before anybody waits: an event that finds the
    GPU idle would measure the launch. The two copies on the host, between the caller's memory and pinned memory, are
    timed there.
    """
    import pycuda.driver as driver

    labels = np.empty(hu.shape, np.uint8)
    segmenter.label(hu, spacing=spacing, out=labels)
    cascade: Any = segmenter._cascade  # a benchmark may look inside
    lane = cascade._lanes[0]
    device, batch = cascade._device, cascade._batch
    if len(hu) != batch or len(lane._engines) != 2:
        raise ValueError(f"hu: got {len(hu)} slices; expected a chunk of {batch}, and a model of two nets")
    steps = _steps(lane)
    with device, errors():
        marks = [[driver.Event() for _ in range(len(steps) + 1)] for _ in range(repeats + 3)]
        for events in marks:
            events[0].record(lane._stream)
            for event, step in zip(events[1:], steps.values(), strict=True):
                step()
                event.record(lane._stream)
        lane._stream.synchronize()
        times = {
            name: [events[i + 1].time_since(events[i]) for events in marks[3:]]
            for i, name in enumerate(steps)
        }
        del marks, events, event  # where the device is current
    times["copy into pinned memory"] = _on_host(lambda: np.copyto(lane._hu_host, hu), repeats)
    times["copy out of pinned memory"] = _on_host(lambda: np.copyto(labels, lane._labels_host), repeats)
    return {
        name: {
            "median_ms": statistics.median(ms),
            "min_ms": min(ms),
            "ms_a_slice": statistics.median(ms) / batch,
        }
        for name, ms in times.items()
    }


def _steps(lane: Any) -> dict[str, Callable[[], Any]]:
    """What a lane enqueues for a chunk, piece by piece."""
    liver, tumour = lane._engines
    stream, thresholds = lane._stream, (liver.spec.logit_threshold, tumour.spec.logit_threshold)
    on = {"stream": stream.handle}
    gate = lane._l1, lane._hu_net, thresholds[0], tumour.spec.window, lane._x2, lane._pixels
    label = lane._l1, lane._l2, thresholds, lane._fit, lane._labels, lane._counts
    return {
        "copy to the GPU": lambda: upload(lane._hu, lane._hu_host, stream),
        "prepare": lambda: _core.prepare(
            lane._hu, lane._fit, liver.spec.window, lane._hu_net, lane._x1, **on
        ),
        "liver net": lambda: liver.run(lane._x1, lane._l1, stream.handle),
        "gate": lambda: _core.gate(*gate, **on),
        "number of liver pixels to the host": lambda: download(lane._pixels_host, lane._pixels, stream),
        "tumour net": lambda: tumour.run(lane._x2, lane._l2, stream.handle),
        "label": lambda: _core.label(*label, **on),
        "copy to the host": lambda: download(lane._labels_host, lane._labels, stream),
    }


def _on_host(call: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


_COLD = """
import json, sys, time
start = time.perf_counter()
import numpy as np
from trtseg import Segmenter
imported = time.perf_counter()
model, device, runtime, file, y, x = sys.argv[1:]
segmenter = Segmenter(model, device=device, batch=1, **({"runtime": runtime} if device != "cpu" else {}))
opened = time.perf_counter()
hu, spacing = np.load(file), (float(y), float(x))
loaded = time.perf_counter()
segmenter.prepare(hu.shape[1:], spacing)
prepared = time.perf_counter()
segmenter.label(hu, spacing=spacing)
labelled = time.perf_counter()
times = {"import": imported - start, "Segmenter()": opened - imported, "prepare()": prepared - loaded}
print(json.dumps({**times, "first label()": labelled - prepared}))
"""


def cold_start(
    model: str,
    runtime: str,
    hu: np.ndarray,
    spacing: tuple[float, float],
    *,
    device: str = "cuda",
    repeats: int = 3,
) -> dict[str, float]:
    """Median seconds from nothing to the first labels of a slice ``hu`` [1, Y, X], in processes of their own.

    The engines are in the cache, and the files are in the memory of the operating system: call it last.
    """
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "slice.npy"
        np.save(file, hu)
        command = [sys.executable, "-c", _COLD, model, device, runtime, str(file), *map(str, spacing)]
        for _ in range(repeats):
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            whole = time.perf_counter() - start
            if done.returncode != 0:
                print(done.stderr, file=sys.stderr)
                said = done.stderr.strip().splitlines()[-1:]
                raise RuntimeError(f"the process ended with {done.returncode}: {' '.join(said)}")
            runs.append({**json.loads(done.stdout.splitlines()[-1]), "whole process": whole})
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}
