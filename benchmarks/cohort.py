"""How fast a cohort goes through one, two, ... processes here, and what that means for many CTs on many machines.

    python -m benchmarks.cohort CT [--slices 20] [--cases 12] [--jobs 1 2] [--threads 1] [--model default]
        [--total 100000] [--mean-slices 300] [--cores 64] [--core-hour 0.04] [--disk-mb-s 1000]

Cases are copies of some slices of a CT, written as .nii.gz. Each row is a run of `trtseg.cohort.run`, less a run with
one case a worker, so that the start of a worker is a column of its own. CPU seconds of the workers tell
more than the wall clock where others use the machine too. The last row is the whole CT, for its memory.

The second table is arithmetic on CPU seconds a slice, memory and bytes of the first, for nodes whose cores are like
those of this machine and scale as well as the runs above: no such node was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

import trtseg
from benchmarks.compare_process import highest, tree
from training.program import parser_of, plain_errors
from training.tables import grid
from trtseg import cohort
from trtseg.cohort.manifest import Manifest
from trtseg.io.atomic import atomic
from trtseg.resources import available_cpus

MB = 2**20


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds by the wall clock and of the processors, and the largest memory of a worker, in MB."""

    wall: float
    cpu: float
    memory: float


def run(folder: Path, ct: Path, count: int, jobs: int, options: dict) -> Run:
    """Segment copies of a CT with ``jobs`` workers."""
    top = Path(tempfile.mkdtemp(dir=folder))
    (top / "cts").mkdir()
    (top / "out").mkdir()
    for n in range(count):
        os.link(ct, top / f"cts/{n:05}.nii.gz")
    before, start, memory = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with cohort.plan([top / "cts"], top / "out") as cases:
        for outcome in cohort.run(cases, cohort.Workers(jobs, options=options), folder=top / "out"):
            if outcome.error is not None:
                raise outcome.error
            # not ru_maxrss, which begins with the memory of the process that starts a worker: this one
            memory = max([memory, *map(highest, tree(os.getpid())[1:])])
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, cpu, memory / MB)


def write(volume: trtseg.Volume, slices: slice, path: Path) -> int:
    """Write slices of a CT; returns the bytes of the file."""
    array = volume.array[slices].transpose(2, 1, 0)[::-1, ::-1]  # canonical [Z, Y, X] to RAS [i, j, k]
    thickness, *spacing = volume.spacing
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), np.diag([*spacing[::-1], thickness, 1.0])), path)
    return path.stat().st_size


def stages(ct: Path, options: dict) -> dict[str, float]:
    """Seconds of each stage of one CT, the second of two times, with one thread."""
    with trtseg.Segmenter(**options) as segmenter:
        for _ in range(2):
            timings = segmenter.segment(ct).timings
    return timings


def commits(folder: Path) -> float:
    """Cases a second that one process can take answers of, as from Ray: write 200 kB, note, rename, all flushed."""
    folder.mkdir()
    count = 200
    with Manifest(folder) as manifest:
        start = time.perf_counter()
        for n in range(count):
            case = cohort.Case(folder / f"{n}.nii.gz", folder / f"{n}_seg.nii.gz")
            staged = manifest.stage()
            with atomic(staged / case.labels.name) as (path,):
                path.write_bytes(bytes(200_000))
            manifest.finish(case, "seen", "made", staged, {})
        return count / (time.perf_counter() - start)


def extrapolate(
    a: argparse.Namespace, cpu: float, start: float, mb: float, memory: tuple[float, float], commit: float
) -> None:
    """Print what many CTs need.

    ``cpu`` are CPU seconds a slice, ``start`` those of a worker's start, ``mb`` MB on disk a slice, ``memory`` MB of a
    worker and MB a slice, ``commit`` cases a second that one command can write.
    """
    seconds = cpu * a.mean_slices
    a_core, size = 3600 / seconds, mb * a.mean_slices
    a_node, worker = a_core * a.cores, memory[0] + memory[1] * a.mean_slices
    hours = a.total / a_core
    print(
        f"{a.total} CTs of {a.mean_slices} slices; nodes of {a.cores} cores, {a.core_hour} a core and hour\n"
    )
    rows = [
        ["CPU seconds a CT", f"{seconds:.1f}"],
        ["CTs an hour and core", f"{a_core:.0f}"],
        ["CTs an hour and node", f"{a_node:.0f}"],
        ["core hours in all", f"{hours:.0f}"],
        ["hours on 1, 10, 100 nodes", ", ".join(f"{hours / a.cores / n:.1f}" for n in (1, 10, 100))],
        ["cost a CT, cost in all", f"{a.core_hour / a_core:.5f}, {hours * a.core_hour:.0f}"],
        [
            "memory of a worker, of a node's workers",
            f"{worker / 1e3:.2f} GB, {worker * a.cores / 1e3:.0f} GB",
        ],
        ["a CT on disk, all of them", f"{size:.0f} MB, {size * a.total / 1e6:.1f} TB"],
        ["a node reads", f"{a_node * size / 3600:.0f} MB/s"],
        [
            f"nodes that {a.disk_mb_s} MB/s of a shared disk feed",
            f"{a.disk_mb_s * 3600 / (a_node * size):.1f}",
        ],
        ["nodes that one command can write the results of", f"{commit * 3600 / a_node:.0f}"],
        ["start of a worker, in CTs", f"{start / seconds:.2f}"],
    ]
    print(grid(["", "computed"], rows) + "\n")


@plain_errors()
def main() -> None:
    """Parse the command line, run all, print both tables."""
    parser = parser_of(__doc__)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--total", type=int, default=100_000)
    parser.add_argument("--mean-slices", type=int, default=300)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--core-hour", type=float, default=0.04)
    parser.add_argument("--disk-mb-s", type=float, default=1000)
    a = parser.parse_args()
    options = {"model": a.model, "precision": a.precision, "device": "cpu", "threads": a.threads}
    volume = trtseg.load(a.ct)
    whole = len(volume.array)
    first = max(0, (whole - a.slices) // 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write(volume, slice(first, first + a.slices), folder / "some.nii.gz")
        write(volume, slice(None), folder / "whole.nii.gz")
        slices = min(a.slices, whole)
        mb = size / slices / 1e6
        timings = stages(folder / "some.nii.gz", options)
        total = sum(timings.values())
        print(
            f"{a.ct.name}: {slices} of {whole} slices, {mb:.2f} MB a slice; {available_cpus()} processors, load "
            f"{os.getloadavg()[0]:.1f}; of one case "
            + ", ".join(f"{stage} {seconds / total:.1%}" for stage, seconds in timings.items())
            + "\n"
        )
        rows, per_slice, start, small = [], 0.0, 0.0, 0.0
        for jobs in a.jobs:
            short = run(folder, folder / "some.nii.gz", jobs, jobs, options)
            long = run(folder, folder / "some.nii.gz", jobs + a.cases, jobs, options)
            wall, cpu = (long.wall - short.wall) / a.cases, (long.cpu - short.cpu) / a.cases
            begun = max(0.0, short.cpu / jobs - cpu)
            if not rows:
                per_slice, start, small = cpu / slices, begun, long.memory
            rows.append([f"{jobs} x {a.threads}", f"{slices}", f"{3600 / wall:.0f}", f"{1000 * wall / slices:.1f}",
                         f"{cpu:.2f}", f"{1000 * cpu / slices:.1f}", f"{begun:.1f}", f"{long.memory:.0f}"])  # fmt: skip
        commit = commits(folder / "commits")
        one = run(folder, folder / "whole.nii.gz", 1, 1, options)
        rows.append([f"1 x {a.threads}", f"{whole}", "", "", "", "", "", f"{one.memory:.0f}"])
    head = ["jobs x threads", "slices", "CTs an hour", "ms a slice", "CPU s a CT", "CPU ms a slice", "start, CPU s",
            "worker's peak MB"]  # fmt: skip
    print(grid(head, rows) + "\n")
    print(f"results of {commit:.0f} cases a second can be written, noted in the manifest and flushed\n")
    a_slice = max(0.0, (one.memory - small) / max(1, whole - slices))
    extrapolate(a, per_slice, start, mb, (small - a_slice * slices, a_slice), commit)


if __name__ == "__main__":
    main()
