"""What a node has done, for Prometheus, and whether it is well: all of it counted in the spool."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trtseg.errors import ArgumentError
from trtseg.node.log import say, where
from trtseg.node.spool import Spool

_COUNTERS = {
    "instances_stored": "Instances stored and acknowledged.",
    "bytes_stored": "Bytes of these instances.",
    "instances_refused": "Instances refused with a status.",
    "associations_refused": "Associations of AE titles that are not allowed or call another one, or that are too many.",
    "instances_unreadable": "Instances stored that could not be decoded.",
    "series_done": "Series segmented, revisions included.",
    "series_failed": "Series that gave no result, for a reason that the log has.",
    "results_sent": "Results that a destination took.",
    "results_dead": "Results that a destination rejected, or that were given up.",
    "delivery_failures": "Attempts to reach a destination that failed.",
    "process_restarts": "Processes of the node that had ended by themselves.",
    "tail_seconds_sum": "Seconds from the end of a series to its results, in all.",
    "tail_seconds_count": "Series in that sum.",
}


class Collector:
    """Reads the counters and the state of the spool when Prometheus asks."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def collect(self) -> Iterator[Any]:
        """Yield all metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counted = {row["name"]: row["value"] for row in self._spool.rows("SELECT * FROM counter")}
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"trtseg_node_{name}", text, value=counted.get(name, 0.0))
        for name, text, rows in (
            ("open_series", "Series that are not finished.", "series WHERE state IN ('open', 'part')"),
            ("open_associations", "Associations that stored something.", "association WHERE ended IS NULL"),
            ("waiting_results", "Results not sent yet.", "delivery WHERE state='waiting'"),
        ):
            (count,) = self._spool.row(f"SELECT COUNT(*) FROM {rows}")  # noqa: S608
            yield GaugeMetricFamily(f"trtseg_node_{name}", text, value=count)
        yield GaugeMetricFamily(
            "trtseg_node_used_bytes", "Size of instances and results in the store.", value=self._spool.used()
        )


class _Server(ThreadingHTTPServer):
    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that something failed, as a caller that does not wait; socketserver would print it."""
        error = sys.exc_info()[1]
        assert error is not None
        say("metrics not answered", level=logging.WARNING, reason=where(error))


def serve(spool: Spool, host: str, port: int, health: Callable[[], dict[str, bool]]) -> ThreadingHTTPServer:
    """Serve ``/metrics`` and ``/health`` in a thread; health is 200 if all that it names is true, else 503."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(spool))

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry))
            elif self.path == "/health":
                parts = health()
                self._answer(
                    200 if all(parts.values()) else 503, "application/json", json.dumps(parts).encode()
                )
            else:
                self._answer(404, "text/plain", b"/metrics or /health\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing: requests come every few seconds."""

    try:
        server = _Server((host, port), Handler)
    except OSError as error:
        raise ArgumentError(
            f"http_host, http_port: got {host} and {port}, where this machine cannot listen ({error.strerror}); choose "
            "an address of this machine and a free port"
        ) from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
