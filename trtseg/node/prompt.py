"""A connection that acknowledges at once: a peer with Nagle's algorithm waits for that, 40 ms by default."""

from __future__ import annotations

import socket

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
