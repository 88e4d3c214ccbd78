"""Bounds around pynetdicom's server: who may connect, how long a PDU may be, how much may be held in memory.

pynetdicom 3.0.4 reads as many bytes as a PDU claims to have (up to 4 GB), collects a message of any length, and
shakes hands over TLS in the thread that accepts connections (https://github.com/pydicom/pynetdicom/issues/1086).
Here a claim is checked before anything is allocated for it.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from trtseg.node.config import Config
from trtseg.node.log import say, where
from trtseg.node.prompt import PromptSocket

if TYPE_CHECKING:
    from pynetdicom.pdu_primitives import P_DATA

_SMALL = 8_000_000  # bytes that an association may hold without a look at the others
_TIMEOUT = 60.0  # seconds for a PDU or a TLS handshake


class Server(ThreadedAssociationServer):
    """Accepts connections from allowed addresses, each in a thread of its own."""

    daemon_threads = True
    config: Config  # set before it serves

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Turn a connection away before a byte of it is read."""
        config = self.config
        if not any(caller.covers(client_address[0]) for caller in config.callers):
            say(
                "connection refused",
                level=logging.WARNING,
                address=client_address[0],
                reason="address not allowed",
            )
            return False
        if threading.active_count() > 4 * config.associations + 16:
            say("connection refused", level=logging.WARNING, reason="too many connections")
            return False
        return True

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept only; TLS is for the connection's own thread."""
        assert self.socket is not None
        return self.socket.accept()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands and start the association."""
        try:
            request.settimeout(_TIMEOUT)
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.ssl_context:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            self.finish_request(request, client_address)
        except (OSError, ssl.SSLError) as error:
            say("connection refused", level=logging.WARNING, address=client_address[0], reason=where(error))
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that something failed; socketserver would print it."""
        say("connection failed", level=logging.ERROR, address=client_address[0])


class Handler(RequestHandler):
    """Makes an association whose socket and messages are bounded."""

    def _create_association(self) -> Any:
        association = super()._create_association()
        association.dul.socket.__class__ = _Socket
        association.dimse = _Messages(association)
        return association


class _Socket(PromptSocket):
    """Reads no more than a PDU may have, and no longer than it may take."""

    def recv(self, nr_bytes: int) -> bytearray:
        server: Any = self.assoc._server
        most = server.config.pdu_kb * 1024
        assert self.socket is not None
        if nr_bytes > most:
            say(
                "association ended", level=logging.WARNING, reason="PDU too long", claimed=nr_bytes, most=most
            )
            raise OSError("PDU too long")
        data = bytearray(nr_bytes)
        view, until = memoryview(data), time.monotonic() + _TIMEOUT
        self.acknowledge()
        while view:
            if time.monotonic() > until:
                raise TimeoutError("PDU takes too long")
            received = self.socket.recv_into(view)
            if not received:
                return data[: nr_bytes - len(view)]
            view = view[received:]
        return data


class _Messages(DIMSEServiceProvider):
    """Collects no message that is too long, and none while others wait."""

    held = 0  # bytes of the message that is being received, or was received last
    is_idle = True  # no message has come in part, or without its sender being there for the answer

    def receive_primitive(self, primitive: P_DATA) -> None:
        server: Any = self.assoc._server
        config = server.config
        self.is_idle = False
        if self.message is None:
            self.held = 0
        self.held += sum(len(data) for _, data in primitive.presentation_data_value_list)
        too_much = None
        if self.held > config.instance_mb * 1_000_000 + 65_536:
            too_much = "instance too large"
        elif self.held > _SMALL and (
            sum(getattr(other.dimse, "held", 0) for other in server.active_associations)
            > config.buffer_mb * 1_000_000
        ):
            too_much = "too much is being received at the same time"
        elif self.msg_queue.qsize() > 1:
            too_much = "messages do not wait for their answers"
        if too_much:
            say("association ended", level=logging.WARNING, reason=too_much, bytes=self.held)
            self.message, self.held = None, 0
            self.dul.event_queue.put("Evt19")  # invalid PDU: the association is aborted
            return
        super().receive_primitive(primitive)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Answer a message."""
        self.is_idle = not self.assoc.acse.is_aborted()
        super().send_msg(primitive, context_id)
