"""How soon labels are there when slices arrive one by one, beside the batch way, in one run.

    python -m benchmarks.stream CT [--rates 5 20 100 0] [--model default] [--device cpu]

Slices of a CT arrive feet to head at so many a second; 0 is as fast as they are taken. The latency of a slice is from
its arrival to its labels by the nets; the tail is from the last arrival to the result of the whole CT. The batch way
collects the same slices and then segments them: its tail is the time of `segment`, without any wait for the end of the
series. Both results are compared. The CT is read before.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

import trtseg
from training.program import parser_of, plain_errors
from trtseg.volume import Volume


def batch(segmenter: trtseg.Segmenter, volume: Volume) -> tuple[float, trtseg.Segmentation]:
    """Seconds that a collected CT takes, with its result."""
    slices = [plane.copy() for plane in volume.array]
    start = time.perf_counter()
    result = segmenter.segment(np.stack(slices), spacing=volume.spacing)
    return time.perf_counter() - start, result


def streamed(
    segmenter: trtseg.Segmenter, volume: Volume, rate: float
) -> tuple[list[float], float, trtseg.Segmentation]:
    """Latencies, tail and result of slices that arrive at a rate."""
    arrived, labelled = {}, {}
    thickness, *spacing = volume.spacing
    with segmenter.stream(
        volume.array.shape[1:],
        spacing=spacing,
        on_labels=lambda z, _: labelled.setdefault(z, time.perf_counter()),
    ) as stream:
        start = time.perf_counter()
        for z, plane in enumerate(volume.array):
            if rate:
                time.sleep(max(0.0, start + z / rate - time.perf_counter()))
            arrived[z * thickness] = time.perf_counter()
            stream.push(plane, z * thickness)
        result = stream.finish()
        tail = time.perf_counter() - max(arrived.values())
    return [labelled[z] - arrived[z] for z in arrived], tail, result


@plain_errors()
def main() -> None:
    """Parse the command line, run both, print a row for each rate."""
    parser = parser_of(__doc__)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[5, 20, 100, 0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    volume = trtseg.load(args.ct)
    one_by_one = {"batch": 1} if args.device != "cpu" else {}
    with trtseg.Segmenter(args.model, device=args.device, **one_by_one) as segmenter:
        segmenter.warm_up(volume.array.shape[1:], volume.spacing[1:])
        alone, together = ([], [])
        for z in range(0, max(1, len(volume.array) - 16), 32):
            chunk = volume.array[z : z + 16]
            for many, times in ((1, alone), (16, together)):
                start = time.perf_counter()
                for first in range(0, len(chunk), many):
                    segmenter.label(chunk[first : first + many], spacing=volume.spacing[1:])
                times.append((time.perf_counter() - start) / len(chunk))
        print(
            f"{'x'.join(map(str, volume.array.shape))} voxels, {segmenter.device} {segmenter.precision}, "
            f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; "
            f"{1000 * np.median(alone):.0f} ms a slice alone, {1000 * np.median(together):.0f} ms in chunks of 16\n"
        )
        print("| slices a second | latency p50, ms | p99, ms | tail, s | batch, s | times shorter |")
        print("|---|---|---|---|---|---|")
        for rate in args.rates:
            latencies, tail, result = streamed(segmenter, volume, rate)
            collected, expected = batch(segmenter, volume)
            assert (result.labels == expected.labels).all()
            assert result.warnings == expected.warnings
            p50, p99 = 1000 * np.percentile(latencies, [50, 99])
            named = f"{rate:g}" if rate else "as fast as possible"
            print(
                f"| {named} | {p50:.0f} | {p99:.0f} | {tail:.2f} | {collected:.2f} | {collected / tail:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
