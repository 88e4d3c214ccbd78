"""A connection that acknowledges at once: a peer with Nagle's algorithm waits for that, 40 ms by default.

And an association that sends at once.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
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


def send_at_once(association: Any) -> None:
    """Send the data of messages from the thread that has them: pynetdicom's own thread takes more of the processor.

    A peer that takes nothing for ``network_timeout`` seconds ends the association.
    """
    limit = struct.pack("ll", int(association.network_timeout), 0)
    association.dul.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    pass_on = association.dul.send_pdu

    def send(primitive: Any) -> None:
        if isinstance(primitive, P_DATA):
            association.dul._send(P_DATA_TF(primitive))
        else:
            pass_on(primitive)

    association.dul.send_pdu = send
