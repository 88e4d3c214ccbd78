"""A connection that acknowledges at once: a peer with Nagle's algorithm waits for that, 40 ms by default."""

from __future__ import annotations

import socket
import sys

from pynetdicom.transport import AssociationSocket


class PromptSocket(AssociationSocket):
    """Acknowledges what has arrived whenever it is read."""

    def recv(self, nr_bytes: int) -> bytearray:
        """Read that many bytes."""
        self.acknowledge()
        return super().recv(nr_bytes)

    def acknowledge(self) -> None:
        """Send acknowledgments that the kernel holds back."""
        if self.socket is not None and hasattr(socket, "TCP_QUICKACK"):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class CallingSocket(PromptSocket):
    """Keeps why it could not connect, or lost its connection, which pynetdicom 3.0.4 tells its own log alone."""

    failure: BaseException | None = None

    def recv(self, nr_bytes: int) -> bytearray:
        """Read that many bytes."""
        try:
            return super().recv(nr_bytes)
        except OSError as error:
            self.failure = error
            raise

    def _shutdown_socket(self) -> None:
        """Close the connection, also where `connect` failed, whose error is being handled then."""
        self.failure = self.failure or sys.exc_info()[1]
        super()._shutdown_socket()
