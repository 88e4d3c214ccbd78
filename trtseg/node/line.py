"""Associations with the DICOM nodes that results are sent to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trtseg.errors import ArgumentError
from trtseg.node.config import Config, Peer
from trtseg.node.receive import UNCOMPRESSED, tls_context
from trtseg.node.results import RESULT_CLASSES

ANSWER_S = 60  # seconds that a destination may take to answer
_IDLE_S = 1.0  # seconds that an association stays open after the last result


class Later(Exception):
    """A destination cannot take anything now."""


class Line:
    """An association with a DICOM node that stays open for a moment, since the results of a series come in parts.

    Parameters
    ----------
    config, peer : Config, Peer
    first : Line, optional
        The line that this one helps: while the node stores a result, the next one is on its way over the other line.
        The helper works only while the first line is open, and leaves everything to it for a while where the node does
        not take a second association, does not answer there, or does not store what came over it.
    """

    def __init__(self, config: Config, peer: Peer, first: Line | None = None) -> None:
        self.first = first
        self._config, self._peer = config, peer
        # results that are on their way over either line
        self._taken: set[int] = set() if first is None else first._taken
        self._lock: threading.Lock = threading.Lock() if first is None else first._lock
        self._association: Any = None
        self._used = 0.0
        self._rests_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is an association."""
        association = self._association
        return association is not None and bool(association.is_established)

    @property
    def has_work(self) -> bool:
        """Whether this line sends what waits: the first line always, its helper only at its side."""
        return self.first is None or (self.first.is_open and time.monotonic() >= self._rests_until)

    def rest(self) -> None:
        """Leave everything to the first line for a while."""
        self._rests_until = time.monotonic() + self._config.retry_most_s

    @contextlib.contextmanager
    def taking(self, result: int) -> Iterator[bool]:
        """Keep a result from the other line; False if that has it on its way."""
        with self._lock:
            is_free = result not in self._taken
            self._taken.add(result)
        try:
            yield is_free
        finally:
            if is_free:
                with self._lock:
                    self._taken.remove(result)

    def open(self) -> Any:
        """Open an association, or take the one that is open; Later if the peer does not accept it."""
        if not self.is_open:
            self._association = associate(self._config, self._peer, sorted(RESULT_CLASSES))
        self._used = time.monotonic()
        return self._association

    def send(self, path: Path, sop_class: str) -> str | None:
        """C-STORE a result; why it is rejected, or None. Later if the peer cannot take it now."""
        import pydicom

        association = self.open()
        accepted = {
            str(c.transfer_syntax[0]) for c in association.accepted_contexts if c.abstract_syntax == sop_class
        }
        as_is, converted = (syntax in accepted for syntax in UNCOMPRESSED[:2])
        if not as_is and not converted:
            return "SOP class not accepted"
        status = association.send_c_store(path if as_is else pydicom.dcmread(path)).get("Status")
        if status is None:
            raise Later("association lost")
        if status >> 8 == 0xA7:
            raise Later(f"out of resources, status 0x{status:04X}")
        is_stored = status == 0 or status >> 12 == 0xB  # perhaps with a warning
        return None if is_stored else f"status 0x{status:04X}"

    def close_if_idle(self) -> None:
        """Release the association if nothing has been sent for a while."""
        if self._association is not None and time.monotonic() - self._used > _IDLE_S:
            self.close()

    def close(self) -> None:
        """Release the association, if one is open."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()


def associate(config: Config, peer: Peer, classes: Sequence[str], **options: Any) -> Any:
    """Open an association; Later if the peer does not accept it."""
    from pynetdicom import AE, evt

    from trtseg.node.prompt import CallingSocket

    entity: Any = AE(ae_title=config.ae)
    entity.connection_timeout = entity.acse_timeout = 10
    entity.dimse_timeout = entity.network_timeout = ANSWER_S
    for sop_class in classes:  # each syntax by itself: the peer may accept both
        for syntax in UNCOMPRESSED[:2]:
            entity.add_requested_context(sop_class, syntax)
    if config.send_tls:
        try:
            options["tls_args"] = tls_context(config, server=False), peer.host
        except ArgumentError as error:  # renewed in the meantime, and not well
            raise Later(str(error)) from error
    options["evt_handlers"] = [(evt.EVT_CONN_OPEN, _hurry)]
    calling: list[Any] = []
    make = entity._create_socket

    def create(*given: Any) -> Any:
        calling.append(make(*given))
        calling[0].__class__ = CallingSocket
        return calling[0]

    entity._create_socket = create
    try:
        association = entity.associate(peer.host, peer.port, ae_title=peer.ae, **options)
    except OSError as error:  # a name that cannot be resolved
        raise Later(f"no connection ({why(error)})") from error
    if not association.is_established:
        if association.rejected_contexts:  # all of them
            raise Later("no SOP class accepted")
        if association.is_rejected:
            raise Later(f"association rejected ({association.acceptor.primitive.reason_str})")
        failure = calling[0].failure
        raise Later(
            f"no connection ({why(failure)})" if failure else "connected, but no association was granted"
        )
    keep_answers(association)
    return association


def why(error: BaseException) -> str:
    """Say why a connection failed, by the error at the bottom: of the network or of TLS, nothing of what was sent."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return type(error).__name__


def keep_answers(association: Any) -> None:
    """Leave answers to those who wait for them.

    A thread of pynetdicom 3.0.4 looks for messages between two requests. Where it wakes up late, the next request is on
    its way, and it would take the answer to that, for which the sender then waits until ``dimse_timeout``. Nobody sends
    requests over an association that was asked for here.
    """
    take = association.dimse.get_msg
    association.dimse.get_msg = lambda block=False: take(block=True) if block else (None, None)


def _hurry(event: Any) -> None:
    """Keep the network from holding small packets back, which costs 40 ms an object, on either side."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
