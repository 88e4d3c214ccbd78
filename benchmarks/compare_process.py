"""A contender's process, which answers job after job, and the memory of its process tree."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.1


class Process:
    """A program that speaks as `benchmarks.peers.serve` does, in a session of its own, which ends with it.

    Parameters
    ----------
    command : list of str
        Its command line.
    threads : int
        For OpenMP and BLAS, beside what the command says.
    log : Path
        Where stderr goes.
    """

    def __init__(self, command: list[str], threads: int, log: Path) -> None:
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        self.started = time.perf_counter()
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **counts},
                text=True,
                start_new_session=True,
            )
        self.peak = 0
        self._stop, self._busy = threading.Event(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        try:
            self.versions: dict[str, str] = self._read()["versions"]
        except BaseException:
            self.close()
            raise

    def ask(self, **job: Any) -> dict[str, Any]:
        """Give a job, wait for its answer; a RuntimeError if it fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process and what it started."""
        self._stop.set()
        self._watcher.join()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        self._busy.set()
        line = self._process.stdout.readline()
        self._busy.clear()
        self.peak = max(self.peak, highest(self._process.pid))
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
            raise RuntimeError(f"it ended: {last[0]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _watch(self) -> None:
        """Keep the largest sum of resident memory of the tree; shared pages count once for each process."""
        while not self._stop.wait(SAMPLE_SECONDS):
            if self._busy.is_set():  # to watch those that wait would take time from the one that runs
                self.peak = max(self.peak, sum(map(resident, tree(self._process.pid))))


def tree(pid: int) -> list[int]:
    """A process and all that it started and that these started."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # gone meanwhile
                continue
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def highest(pid: int) -> int:
    """Most bytes of memory that a process ever held, without what it started; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0
