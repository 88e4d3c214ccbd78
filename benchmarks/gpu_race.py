"""Candidates against each other in `benchmarks.gpu`: opened, compared, timed in turns."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import gpu_measure as measure
from benchmarks.gpu_measure import Ct
from benchmarks.gpu_report import Report, failure

BATCH = 16
REFERENCE = "eager-fp32"  # whose labels the others must have
LEAST_DICE = 0.99  # of the liver: a candidate with other labels runs another net

# Opens a candidate for slices like those of a volume, so many at a time; what it gives has `run(hu, out)`.
Open = Callable[[Ct, int], Any]


class Benchmark:
    """Candidates on volumes and slices; what is found goes into the report."""

    def __init__(self, report: Report, opened: dict[str, Open], *, device: str, repeats: int) -> None:
        self.report, self._opened, self._repeats = report, opened, repeats
        self._gpu = device == "cuda"
        self.labels: dict[str, np.ndarray] = {}  # by name of the volume

    def open(self, name: str, ct: Ct, batch: int = BATCH) -> Any:
        """Open a candidate for slices like those of ``ct``."""
        return self._opened[name](ct, batch)

    def volume(self, ct: Ct, names: Sequence[str], batch: int = BATCH) -> None:
        """Time a volume, host to host and GPU to GPU."""
        found = self.report.data.setdefault("volumes", {}).setdefault(
            ct.name, {"agreement": {}, "host": {}, "device": {}}
        )
        out, runs = np.empty(ct.hu.shape, np.uint8), {}
        for name in sorted(names, key=lambda name: name != REFERENCE):
            runner = self._part(name, functools.partial(self._warm, name, ct, batch, out))
            if runner is not None and self._agrees(name, ct, out, found):
                runs[name] = runner
        self._rounds(found["host"], {name: functools.partial(r.run, ct.hu, out) for name, r in runs.items()})
        if self._gpu:
            self._rounds(found["device"], self._on_gpu(ct, runs))

    def slices(self, ct: Ct, names: Sequence[str], runs: int) -> None:
        """Time slices with liver one by one, host to host: both nets run."""
        liver = np.flatnonzero((self.labels[ct.name] > 0).any((1, 2)))
        if not len(liver):
            raise ValueError("the model finds no liver in the phantom")
        few = Ct(np.ascontiguousarray(ct.hu[liver]), ct.spacing)
        out, calls = np.empty((1, *ct.hu.shape[1:]), np.uint8), {}
        for name in names:
            labels = np.empty(few.hu.shape, np.uint8)
            runner = self._part(name, functools.partial(self._warm, name, few, 1, labels))
            if runner is not None:
                turns = itertools.cycle([few.hu[z : z + 1] for z in range(len(liver))])
                calls[name] = lambda r=runner, t=turns: r.run(next(t), out)
        self._rounds(self.report.data.setdefault("slice", {}), calls, runs, turn=100, seconds=15.0)

    def _part(self, name: str, work: Callable[[], Any]) -> Any:
        """Open a candidate, unless it has failed before."""
        return self.report.part(name, work) if self.report.status(name) == "ok" else None

    def _warm(self, name: str, ct: Ct, batch: int, out: np.ndarray) -> Any:
        runner = self.open(name, ct, batch)
        for _ in range(2):
            out.fill(255)
            runner.run(ct.hu, out)
        return runner

    def _agrees(self, name: str, ct: Ct, labels: np.ndarray, found: dict[str, Any]) -> bool:
        """Compare labels with those of the first candidate: the time of another net is worth nothing."""
        reference = self.labels.setdefault(ct.name, labels.copy())
        self.report.data.setdefault("reference", name)
        dice = found["agreement"][self._key(name, found["agreement"])] = measure.agreement(labels, reference)
        if labels.max() <= 2 and dice["liver"] >= LEAST_DICE:
            return True
        self.report.note(name, f"failed: other labels than {self.report.data['reference']}: Dice {dice}")
        return False

    def _on_gpu(self, ct: Ct, runs: dict[str, Any]) -> Mapping[str, Callable[[], object]]:
        import torch

        hu, out = torch.from_numpy(ct.hu).cuda(), torch.zeros(ct.hu.shape, dtype=torch.uint8, device="cuda")

        def call(runner: Any) -> None:
            runner.run(hu, out)
            torch.cuda.synchronize()

        calls = {}
        for name, runner in runs.items():
            if name.endswith("-host"):
                continue

            def check(name: str = name, runner: Any = runner) -> bool:
                out.fill_(255)
                call(runner)
                dice = measure.agreement(out.cpu().numpy(), self.labels[ct.name])
                if dice["liver"] < LEAST_DICE:
                    raise RuntimeError(f"other labels from GPU memory than from host memory: Dice {dice}")
                return True

            if self._part(name, check):
                calls[name] = functools.partial(call, runner)
        return calls

    def _rounds(
        self,
        into: dict[str, Any],
        calls: Mapping[str, Callable[[], object]],
        repeats: int | None = None,
        **options: Any,
    ) -> None:
        gc.collect()
        gc.freeze()  # what all the libraries hold is not to be searched while something is timed

        def failed(name: str, error: Exception) -> None:
            self.report.note(name, failure(error))

        try:
            times = measure.rounds(calls, repeats or self._repeats, failed=failed, **options)
        finally:
            gc.unfreeze()
        into.update({self._key(name, into): one for name, one in measure.summaries(times).items()})
        self.report.save()

    @staticmethod
    def _key(name: str, found: dict[str, Any]) -> str:
        return f"{name} (again)" if name in found else name
