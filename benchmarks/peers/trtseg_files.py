"""trtseg itself, as a contender: `Segmenter.segment` and `save`, post-processing and measurements included.

It also tells the floor: what the engines alone take for the slices that need them, and for one slice.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import trtseg
from benchmarks.peers import serve
from trtseg import models, reference
from trtseg.cascade.cpu import with_neighbours
from trtseg.engines import open_engine

CHUNK = 16


def floor(ct: Path, segmenter: Any, model: str, threads: int, seconds: float) -> dict[str, Any]:
    """Slices that need each net, and the seconds of its engine for these: median of passes in about ``seconds``.

    The liver net is needed by slices that show anything, the tumour net by slices of whose pixels the liver net calls
    one liver, for these pixels and those beside them. After each pass there is a run from file to file, and ``rest`` is
    what of it is not engines: the median of the pairs, so that a slower minute of the machine meets both.
    """
    files = models.find(model)
    volume = trtseg.load(ct)
    engines = [
        open_engine(files, spec, precision=segmenter.precision, threads=threads) for spec in files.spec.nets
    ]
    liver, tumour = files.spec.nets
    fit = liver.fit_volume(volume.array, volume.spacing[1:])
    inputs: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    wanted: list[np.ndarray] = []
    for first in range(0, len(volume.array), CHUNK):
        hu_net, x1 = reference.prepare(volume.array[first : first + CHUNK], fit, liver.window)
        l1 = np.empty_like(x1)
        engines[0].run(x1, l1)
        x2, pixels = reference.gate(l1, hu_net, liver.logit_threshold, tumour.window)
        inputs[0].append(x1[x1.max(axis=(1, 2, 3)) > 0])
        inputs[1].append(x2[pixels > 0])
        wanted.append(with_neighbours(l1[:, 0] > liver.logit_threshold)[pixels > 0])
    logits = np.empty_like(l1, shape=(CHUNK, *l1.shape[1:]))
    passes, rests, end = [], [], time.perf_counter() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while not passes or time.perf_counter() < end:
            start = time.perf_counter()
            for x in inputs[0]:
                engines[0].run(x, logits[: len(x)])
            for x, own in zip(inputs[1], wanted, strict=True):
                engines[1].run(x, logits[: len(x)], wanted=own)
            between = time.perf_counter()
            segmenter.segment(ct).save(Path(folder, "labels.nii.gz"))
            passes.append(between - start)
            rests.append(1 - passes[-1] / (time.perf_counter() - between))
    return {
        "precision": engines[0].precision,
        "slices": [sum(map(len, pieces)) for pieces in inputs],
        "floor": float(np.median(passes)),
        "rest": float(np.median(rests)),
        "passes": len(passes),
    }


def latencies(ct: Path, segmenter: Any, seconds: float) -> dict[str, Any]:
    """Milliseconds of `Segmenter.label` for single slices that both nets see, one after the other: p50 and p99."""
    volume = trtseg.load(ct)
    spacing = volume.spacing[1:]
    fit = segmenter.place(volume.array, spacing=spacing)
    with_liver = np.flatnonzero(segmenter.label(volume.array, spacing=spacing).any((1, 2)))
    found: list[float] = []
    end = time.perf_counter() + seconds
    while with_liver.size and (len(found) < 20 or time.perf_counter() < end):
        z = with_liver[len(found) % len(with_liver)]
        start = time.perf_counter()
        segmenter.label(volume.array[z : z + 1], spacing=spacing, fit=fit)
        found.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(found, (50, 99)) if found else (0.0, 0.0)
    return {"slices": len(found), "p50": float(p50), "p99": float(p99)}


def main() -> None:
    options = serve.parser()
    options.add_argument("--precision", default="auto")
    options.add_argument("--raw", action="store_true", help="no post-processing, to compare labels with")
    args = options.parse_args()
    steps = (
        trtseg.PostProcess(median_mm=0.0, largest_liver=False, fill_holes=False, min_tumour_ml=0.0)
        if args.raw
        else trtseg.PostProcess()
    )
    segmenter = trtseg.Segmenter(
        args.model, device="cpu", precision=args.precision, threads=args.threads, postprocess=steps
    )

    def label(source: Path, target: Path, job: dict[str, Any]) -> dict[str, Any]:
        if "floor" in job:
            return floor(source, segmenter, args.model, args.threads, job["floor"])
        if "latency" in job:
            return latencies(source, segmenter, job["latency"])
        one = steps.largest_liver and not job["several_livers"]  # which keeps one of the stack's
        segmenter.postprocess = dataclasses.replace(steps, largest_liver=one)
        result = segmenter.segment(source)
        result.save(target)
        return {"stages": result.timings, "precision": segmenter.precision}

    serve.serve(label, "openvino", "numpy", trtseg=trtseg.__version__)


if __name__ == "__main__":
    main()
