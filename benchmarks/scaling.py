"""Time and peak memory of `trtseg segment`, file to file, against the number of slices and of threads.

    python -m benchmarks.scaling CT [CT ...] [--slices 50,100,200,400,800] [--threads 1,2] [--precision auto]
        [--repeats 1] [--plot scaling.png]

CTs of the same rows and columns are stacked, forwards and backwards in turn, to as many slices as are asked for. Each
run is a process of its own: seconds are from its start to its end, with the model loaded and all files read and
written, and the least of the repeats. Its memory is the largest resident set; `beyond` is what is left of it without
the CT (2 bytes a voxel) and its labels (1 byte). A run before the others, which is not counted, compiles the nets.
The plot needs matplotlib (extra ``evaluate``).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import igzip
from nibabel.nifti1 import Nifti1Header

import trtseg
from benchmarks.compare_process import highest
from training.picture import drawn
from training.program import parser_of, plain_errors
from trtseg.errors import InputError

MB = 1e6
#: Between two looks at a process.
SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    slices: int
    threads: int
    seconds: float
    memory: float  # bytes
    beyond: float  # bytes


def order(count: int, wanted: int) -> list[int]:
    """Which of ``count`` slices follow each other: forwards, backwards, and so on, none twice in a row."""
    turn = [*range(count), *range(count - 2, 0, -1)]
    return [turn[i % len(turn)] for i in range(wanted)]


def stack(cts: Sequence[np.ndarray], spacing: tuple[float, float, float], wanted: int, path: Path) -> int:
    """Write a CT of ``wanted`` slices, one by one; return its voxels."""
    slices = [(ct, z) for ct in cts for z in range(len(ct))]
    rows, columns = cts[0].shape[1:]
    header = Nifti1Header()
    header.set_data_shape((columns, rows, wanted))
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([-spacing[2], -spacing[1], spacing[0], 1.0]), code="scanner")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with igzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for number in order(len(slices), wanted):
            ct, z = slices[number]
            file.write(ct[z].tobytes())
    return wanted * rows * columns


def measured(ct: Path, out: Path, threads: int, precision: str) -> tuple[float, float]:
    """Segment a CT in a process of its own; seconds, and the largest resident set in bytes."""
    command = [sys.executable, "-m", "trtseg", "segment", ct, "-o", out, "--threads", threads]
    command += ["--precision", precision, "--quiet"]
    start, memory = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(list(map(str, command)), stderr=errors)
        while process.poll() is None:
            # not ru_maxrss at its end, which begins with the memory of the process that starts it: this one
            memory = max(memory, highest(process.pid))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            raise InputError(f"trtseg segment ended with code {process.returncode}: {errors.read().strip()}")
    return seconds, float(memory)


def plot(runs: Sequence[Run], png: Path) -> None:
    """Draw seconds, and memory beyond the CT and its labels, against slices."""
    with drawn(png, 1, 2, figsize=(9, 3.6)) as (left, right):
        for threads in sorted({run.threads for run in runs}):
            rows = [run for run in runs if run.threads == threads]
            slices = [run.slices for run in rows]
            name = f"{threads} thread{'s' * (threads > 1)}"
            left.plot(slices, [run.seconds for run in rows], "o-", label=name)
            (line,) = right.plot(slices, [run.memory / MB for run in rows], "o-", label=f"{name}, all of it")
            beyond = [run.beyond / MB for run in rows]
            right.plot(slices, beyond, "s--", color=line.get_color(), label=f"{name}, beyond CT and labels")
        left.set(title="Time, file to file", xlabel="slices", ylabel="seconds")
        right.set(title="Peak memory", xlabel="slices", ylabel="MB")
        for axes in (left, right):
            axes.set(xlim=(0, None), ylim=(0, None))
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")


@plain_errors()
def main() -> None:
    """Parse the command line, measure and print."""
    parser = parser_of(__doc__)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("cts", type=Path, nargs="+", metavar="CT")
    parser.add_argument("--slices", type=numbers, default=[50, 100, 200, 400, 800])
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    volumes = [trtseg.load(path) for path in options.cts]
    for path, volume in zip(options.cts, volumes, strict=True):
        if volume.array.shape[1:] != (size := volumes[0].array.shape[1:]):
            raise InputError(
                f"{path}: has slices of {volume.array.shape[1]} x {volume.array.shape[2]}, but {options.cts[0]} of "
                f"{size[0]} x {size[1]}; give CTs of the same rows and columns, or each alone"
            )
    arrays, spacing = [volume.array for volume in volumes], volumes[0].spacing
    runs = []
    print(f"{'slices':>6} {'threads':>7} {'seconds':>8} {'ms/slice':>8} {'MB':>6} {'beyond MB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        ct, out = Path(folder, "ct.nii.gz"), Path(folder, "out.nii.gz")
        stack(arrays, spacing, 4, ct)
        for threads in options.threads:
            measured(ct, out, threads, options.precision)
        for slices in options.slices:
            voxels = stack(arrays, spacing, slices, ct)
            for threads in options.threads:
                all_of = [measured(ct, out, threads, options.precision) for _ in range(options.repeats)]
                seconds, memory = min(s for s, _ in all_of), max(m for _, m in all_of)
                run = Run(slices, threads, seconds, memory, memory - 3 * voxels)
                runs.append(run)
                print(
                    f"{slices:6} {threads:7} {seconds:8.2f} {1000 * seconds / slices:8.1f} "
                    f"{memory / MB:6.0f} {run.beyond / MB:9.0f}",
                    flush=True,
                )
    for threads in options.threads:
        rows = [run for run in runs if run.threads == threads]
        if len(rows) > 2:
            x, y = np.array([(run.slices, run.seconds) for run in rows]).T
            slope, start = np.polyfit(x, y, 1)
            off = np.abs(slope * x + start - y).max()
            print(
                f"{threads} thread(s): {start:.2f} s + {1000 * slope:.1f} ms a slice, within {off:.2f} s of that line"
            )
    if options.plot is not None:
        plot(runs, options.plot)


if __name__ == "__main__":
    main()
