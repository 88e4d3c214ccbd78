"""The node as a whole: three processes, started, watched and restarted."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trtseg.errors import ArgumentError, TrtsegError
from trtseg.node import log, metrics
from trtseg.node.config import Config
from trtseg.node.forward import forward
from trtseg.node.log import say, scrub, shown, where
from trtseg.node.purge import give_up, mend_times, purge, waiting_elsewhere
from trtseg.node.receive import receive, tls_context
from trtseg.node.spool import Spool
from trtseg.node.stopping import Stop
from trtseg.node.work import work

_LONG = 60.0  # seconds after which a process counts as well, and the longest wait before it is started again
_LEFT_OVER = 5.0  # seconds that processes of a node that was killed may take to end


def run(config: Config) -> None:
    """Run a node until SIGTERM, SIGINT or SIGHUP.

    Raises
    ------
    OutputError
        If the store cannot be used or is damaged, or another node uses it.
    ArgumentError
        If nobody can listen at the host and port, or the files for TLS cannot be used.
    """
    tls_context(config, server=True)  # each process makes its own
    os.umask(0o077)
    log.start("node")
    spool = Spool(config.store)
    alone = spool.lock("node", wait=False)
    spool.check()
    _check_port(config.host, config.port)
    if waiting := waiting_elsewhere(spool, config.destinations):
        say(
            "results wait for a destination not in the settings",
            level=logging.WARNING,
            results=len(waiting),
            to=sorted({shown(row["destination"]) for row in waiting}),
        )
    # In a thread: a network folder whose server is away answers nobody, and slices are to be received meanwhile.
    threading.Thread(target=_name_unwritable, args=(config.folder,), daemon=True).start()
    context = multiprocessing.get_context("spawn")
    #: The instance or, negative, the series that the worker is at: what it died of, if it dies.
    current = context.RawValue("q", 0)
    children = [
        _Child(receive, config),
        _Child(work, config, current),
        _Child(forward, config),
    ]
    stop = Stop(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if config.http_port:
        metrics.serve(
            spool,
            config.http_host,
            config.http_port,
            lambda: {child.name: child.is_well() for child in children},
        )
    purged = 0.0
    while not stop.is_set():
        for child in children:
            if child.died():
                _blame(spool, child.name, current)
            child.start_if_due(context)
        if time.monotonic() - purged > 10:
            purged = time.monotonic()
            _purge(spool, config)
        stop.wait(0.1)
    for child in children:
        child.end()
    alone.close()
    spool.close()
    say("stopped")


def _name_unwritable(folders: Iterable[Path]) -> None:
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
            say("folder cannot be written to, results will wait", level=logging.WARNING, folder=str(folder))


def _check_port(host: str, port: int) -> None:
    """Raise an ArgumentError unless the receiver can listen there; that of a killed node has some time to end."""
    until = time.monotonic() + _LEFT_OVER
    while True:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise ArgumentError(
                    f"host, port: got {host} and {port}, where this machine cannot listen ({error.strerror}); choose "
                    "an address of this machine and a free port"
                ) from error
        time.sleep(0.1)


class _Child:
    """A process of the node, named like its function, and when it is started again."""

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        self.name = body.__name__
        self._given = body, *arguments
        self._process: Any = None
        self._started = 0.0
        self._due = 0.0
        self._wait = 0.5

    def is_well(self) -> bool:
        return self._process is not None and bool(self._process.is_alive())

    def died(self) -> bool:
        """Tell, once, that the process has ended; each time soon after its start doubles the wait."""
        if self._process is None or self._process.is_alive():
            return False
        now = time.monotonic()
        self._wait = min(self._wait * 2, _LONG) if now - self._started < _LONG else 0.5
        self._due = now + self._wait
        say(
            "process ended",
            level=logging.ERROR,
            which=self.name,
            code=self._process.exitcode,
            again_in_s=self._wait,
        )
        self._process = None
        return True

    def start_if_due(self, context: Any) -> None:
        if self._process is None and time.monotonic() >= self._due:
            self._process = context.Process(target=_child, args=self._given)
            self._process.start()
            self._started = time.monotonic()

    def end(self) -> None:
        """Ask the process to end, and make it."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join(15)
            self._process.kill()
            self._process.join()


def _child(body: Callable[..., None], *arguments: Any) -> None:
    """The start of a process of the node, which lives no longer than the node."""
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the node passes the end on
    log.start(body.__name__)
    say("started", pid=os.getpid())
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        body(*arguments)
    except BaseException as error:
        reason = scrub(str(error)) if isinstance(error, TrtsegError) else where(error)
        say("failed", level=logging.ERROR, reason=reason)
        os._exit(1)  # threads of pynetdicom would keep it alive


def _blame(spool: Spool, name: str, current: Any) -> None:
    """Note that a process ended by itself, and, of the worker, what it was at."""
    try:
        spool.count("process_restarts")
        if name == "work":
            spool.blame(current.value)
    except Exception as error:  # a full disk
        say("failed", level=logging.ERROR, reason=where(error))
    if name == "work":
        current.value = 0


def _purge(spool: Spool, config: Config) -> None:
    try:
        mend_times(spool, config.retry_most_s)
        give_up(spool, config.destinations, config.keep_dead_s)
        if removed := purge(spool, config.keep_s, config.keep_dead_s):
            say("removed", files=removed)
    except Exception as error:
        say("failed", level=logging.ERROR, reason=where(error))
