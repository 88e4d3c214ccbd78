"""Workers on the machines of a Ray cluster.

Results come back to this process with the answers, and this process alone writes: the nodes share no disk with it, and
the manifest is the same as with processes. A worker has at most one case, so what is on its way is bounded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtseg.cohort.tasks import Bench, Failed, Lost, Reply, Setup, Task, portable
from trtseg.errors import ArgumentError, DeviceError

log = logging.getLogger("trtseg")

_LOCAL = "local"


class RayCrew:
    """A crew of Ray actors, see `trtseg.cohort.dispatch.Crew`.

    Parameters
    ----------
    address : str
        Of the cluster; ``local`` starts one on this machine and ends it with the crew.
    size : int or None
        How many workers; by default one for each ``threads`` of the cluster's processors.
    threads : int
        Threads, and processors, of each.
    is_gpu : bool
        Each worker has a GPU.

    Raises
    ------
    DeviceError
        Ray is not installed, the cluster does not answer, or no worker would ever have room: ``size`` was left to a
        cluster without room for one, or the cluster is ``local``, which does not grow.
    """

    is_shared = False
    together = True  # a lost worker is mostly a lost machine, and no matter of the case

    def __init__(self, address: str, size: int | None, threads: int, is_gpu: bool) -> None:
        # Ray would send usage statistics of a cluster that it starts; who wants that sets the variable.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_USAGE_STATS_PROMPT_ENABLED", "0")
        if not address:
            raise ArgumentError("ray: got an empty address; expected host:port, auto or local")
        try:
            import ray
        except ImportError as error:
            raise DeviceError("Ray is not installed; pip install 'trtseg[ray]'") from error
        self._ray = ray
        self._actor: Any = None
        self._due: dict[Any, Any] = {}  # the answer that each worker owes
        self._is_ours = not ray.is_initialized()
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
        if address == _LOCAL:
            options |= {"include_dashboard": False, "num_cpus": None if size is None else size * threads}
        try:
            if self._is_ours:
                ray.init(**options)
        except Exception as error:  # Ray's errors of this are of many kinds
            raise DeviceError(
                f"ray: the cluster {address} does not answer ({error}); start it, or give its address"
            ) from error
        self._threads = threads
        self._resources = {"num_cpus": threads, "num_gpus": int(is_gpu)}
        room = sum(_room(node, threads, is_gpu) for node in ray.nodes() if node["Alive"])
        if not room:
            need = f"{threads} processor{'s' * (threads != 1)}{' and a GPU' * is_gpu}"
            said = f"no machine of the cluster {address} has what a worker needs, {need}"
            if size is None or address == _LOCAL:
                self.close()
                raise DeviceError(f"ray: {said}; change --threads or --device, or the cluster")
            log.warning("ray: %s; waiting for one", said)  # clusters may grow
        self.size = size or room

    def hire(self, setup: Setup) -> Any:
        """Start an actor, wherever there is room."""
        self._actor = self._actor or self._ray.remote(_Actor)
        options = {**setup.options, "threads": self._threads}
        if os.path.isdir(options.get("model", "")):  # noqa: PTH112
            options["model"] = os.path.abspath(options["model"])  # noqa: PTH100 - nodes work in other folders
        made = self._actor.options(**self._resources, max_restarts=0)
        worker = made.remote(replace(setup, options=options))
        self._due[worker.start.remote()] = worker
        return worker

    def give(self, worker: Any, task: Task) -> None:
        """Send a task."""
        case = task.case
        if case.url is None:
            case = replace(case, source=Path(os.path.abspath(case.source)))  # noqa: PTH100
        self._due[worker.do.remote(replace(task, case=case))] = worker

    def wait(self, seconds: float) -> Sequence[tuple[Any, Reply]]:
        """Receive the answers that are there, after waiting for the first."""
        came, _ = self._ray.wait(list(self._due), num_returns=1, timeout=seconds)
        answers: list[tuple[Any, Reply]] = []
        for answer in came:
            worker = self._due.pop(answer)
            try:
                answers.append((worker, self._ray.get(answer)))
            except self._ray.exceptions.RayError as error:
                self._ray.kill(worker)
                answers.append((worker, Lost(_reason(error))))
        return answers

    def close(self) -> None:
        """End all workers that still have work, and a cluster that this crew has started."""
        for worker in self._due.values():
            self._ray.kill(worker)
        if self._is_ours:
            self._ray.shutdown()


class _Actor:
    """A worker: what `trtseg.cohort.processes.work` is for a process."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._bench: Bench | None = None

    def start(self) -> Reply:
        """Load the model."""
        try:
            self._bench = Bench(self._setup)
            return self._bench.ready()
        except Exception as error:
            return Failed(portable(error))

    def do(self, task: Task) -> Reply:
        """Do a case."""
        assert self._bench is not None
        return self._bench.do(task)


def _room(node: Mapping[str, Any], threads: int, is_gpu: bool) -> int:
    """How many workers a machine of the cluster has room for."""
    has = node["Resources"]
    by_cpu = int(has.get("CPU", 0)) // threads
    return min(by_cpu, int(has.get("GPU", 0))) if is_gpu else by_cpu


def _reason(error: Exception) -> str:
    """The sentence of Ray's error, without its advice."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
