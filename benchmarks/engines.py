"""The FP32 engines of the CPU in turns: trtseg's own beside OpenVINO, on the calibration slices of a model.

    python -m benchmarks.engines [--model default] [--threads 2] [--repeats 15]

For each net it prints ms a slice, for 16 slices in one call and for a slice alone, medians over the repeats, and how
far the logits differ. In the rows "every tile" zeros are -0, of which the engine knows nothing beforehand. The last
row is the tumour net where only logits in and beside the liver are wanted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from trtseg import models
from trtseg.cascade.cpu import with_neighbours
from trtseg.engines.base import Net, logits_of
from trtseg.engines.calibration import references
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.precision import FP32
from trtseg.engines.unet import UNetEngine
from trtseg.resources import available_cpus

TOGETHER = 16


def in_turns(runs: dict[tuple[str, int], Callable[[], object]], repeats: int) -> dict[tuple[str, int], float]:
    """Median seconds of each call; the calls take turns, and the first turn does not count."""
    seconds: dict[tuple[str, int], list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    files = models.find(args.model)
    shown, first = references(files), files.spec.nets[0]
    near = with_neighbours(shown[first.role].logits[:, 0] > first.logit_threshold)
    print(
        f"| net, {args.threads} threads | engine | {TOGETHER} slices, ms a slice | one slice, ms | differs by |"
    )
    print("|---|---|---|---|---|")
    for spec in files.spec.nets:
        net, images = Net.read(files, spec, FP32), shown[spec.role].images
        own, other = UNetEngine(net, args.threads), OpenVinoEngine(net, args.threads)
        many, wanted = (
            np.resize(images, (TOGETHER, *images.shape[1:])),
            np.resize(near, (TOGETHER, *spec.size)),
        )
        logits = logits_of(other, many)
        difference = f"{np.abs(logits_of(own, many) - logits).max():.1e}"
        signed = np.where(many == 0, np.float32(-0.0), many)
        runs: dict[tuple[str, int], Callable[[], object]] = {}
        for n in (TOGETHER, 1):
            runs["trtseg", n] = partial(own.run, many[:n], logits[:n])
            runs["trtseg, every tile", n] = partial(own.run, signed[:n], logits[:n])
            runs["OpenVINO", n] = partial(other.run, many[:n], logits[:n])
            if spec.role == "tumour":
                beside = partial(own.run, many[:n], logits[:n], wanted=wanted[:n])
                runs["trtseg, beside the liver", n] = beside
        seconds = in_turns(runs, args.repeats)
        for name in dict.fromkeys(name for name, _ in runs):
            together, alone = 1e3 * seconds[name, TOGETHER] / TOGETHER, 1e3 * seconds[name, 1]
            told = difference if name == "trtseg" else ""
            print(f"| {spec.role} | {name} | {together:.1f} | {alone:.1f} | {told} |")


if __name__ == "__main__":
    main()
