"""Settings that would stop a node later are refused when it starts."""

import socket
from pathlib import Path

import pytest

from trtseg.errors import ArgumentError
from trtseg.node import metrics
from trtseg.node.config import Config
from trtseg.node.spool import Spool


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, "port: got 65536; expected a port, at most 65535"),
        ({"http_port": 99999}, "http_port: got 99999; expected a port, at most 65535"),
        ({"associations": 0}, "associations: got 0; expected at least 1"),
        ({"threads": 0}, "threads: got 0; expected at least 1"),
        ({"results": ()}, r"results: got \[\]; expected some of seg, sr, sc"),
    ],
)
def test_a_setting_that_no_node_can_run_with_is_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        Config(Path("/nowhere"), folder=(Path("/nowhere"),), **settings)


def test_a_port_for_metrics_that_is_taken_is_refused_by_name(tmp_path):
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArgumentError, match=rf"http_port: 127\.0\.0\.1:{port} cannot be listened at \("):
            metrics.serve(Spool(tmp_path), "127.0.0.1", port, dict)
