"""Workers that are processes of this machine.

A worker is a Python of its own, with a pipe to this process. It ends when the pipe does, so it never outlives the
command, however that ends; and what ends a worker (a lack of memory, a fault in a library) ends nothing else.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from trtseg.cohort.tasks import Bench, Failed, Lost, Reply, Setup, Task, portable
from trtseg.terminal import make_log_visible

# The worker finds trtseg where this process found it.
_START = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
try:
    sys.path[:] = pipe.recv()
except (EOFError, OSError):
    sys.exit(1)
from trtseg.cohort.processes import work
work(pipe)
"""
_FIRST_TO_GO = "500"  # where memory runs out, the kernel ends a worker rather than who gives it work


class Processes:
    """A crew of processes, see `trtseg.cohort.dispatch.Crew`.

    Parameters
    ----------
    size : int
        How many.
    threads : int
        Threads of each.
    """

    is_shared = True
    together = False  # a case that was too large beside others has the machine for itself

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self._threads = threads
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}

    def hire(self, setup: Setup) -> Connection:
        """Start a process."""
        ours, theirs = Pipe()
        limits = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(self._threads)}
        command = [sys.executable, "-c", _START, str(theirs.fileno())]
        # In a session of its own: a terminal sends its signals to all processes of one.
        self._processes[ours] = subprocess.Popen(  # noqa: S603 - this very Python
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **limits},
            start_new_session=True,
        )
        theirs.close()
        with contextlib.suppress(OSError):  # it has ended already, which `wait` finds out
            ours.send(sys.path)
            ours.send(replace(setup, options={**setup.options, "threads": self._threads}))
        return ours

    def give(self, worker: Any, task: Task) -> None:
        """Send a task."""
        with contextlib.suppress(OSError):
            worker.send(task)

    def wait(self, seconds: float) -> Sequence[tuple[Any, Reply]]:
        """Receive answers."""
        answers: list[tuple[Any, Reply]] = []
        for pipe in wait(list(self._processes), seconds):
            assert isinstance(pipe, Connection)
            try:
                answers.append((pipe, pipe.recv()))
            except (OSError, EOFError):
                answers.append((pipe, Lost(self._why(pipe))))
        return answers

    def close(self) -> None:
        """Kill all processes; what they were writing is in folders that belong to nobody."""
        for pipe in list(self._processes):
            self._why(pipe)

    def _why(self, pipe: Connection) -> str:
        """Bury a process, and say how it ended."""
        process = self._processes.pop(pipe)
        pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0 if process.poll() is None else 0)
        process.kill()
        code = process.wait()
        if code >= 0:
            return f"the process ended with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = ", as where memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{hint}"


def work(pipe: Connection) -> None:
    """Do what comes through a pipe, until the pipe ends: the body of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_log_visible()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write(_FIRST_TO_GO)
    try:
        setup: Setup = pipe.recv()
    except (EOFError, OSError):
        return  # the command has ended
    tasks = queue.SimpleQueue[Task]()

    def receive() -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                tasks.put(pipe.recv())
        os._exit(1)  # nobody waits for what is being done

    threading.Thread(target=receive, daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        try:
            bench = Bench(setup)
            ready = bench.ready()
        except Exception as error:
            pipe.send(Failed(portable(error)))
            threading.Event().wait()  # `receive` ends the process with the pipe
        pipe.send(ready)
        while True:
            pipe.send(bench.do(tasks.get()))
