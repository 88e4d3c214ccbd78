"""Settings that would stop a node later are refused when it starts."""

import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from nodes import certificates, filled, free_port, wait_for

from trtseg.errors import ArgumentError, InputError, OutputError
from trtseg.node import metrics, run
from trtseg.node.config import Config, check_installed, load
from trtseg.node.receive import tls_context
from trtseg.node.spool import Spool


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, "port: got 65536; expected a port, at most 65535"),
        ({"http_port": 99999}, "http_port: got 99999; expected a port, at most 65535"),
        (
            {"http_port": 11112},
            "http_port: got 11112, which is the port of the node too; expected another one",
        ),
        (
            {"receiver_mb": 249},
            "receiver_mb: got 249; expected at least 250, which the process needs to start",
        ),
        ({"worker_mb": 100}, "worker_mb: got 100; expected at least 500, which .*, or 0 for no limit"),
        ({"associations": 0}, "associations: got 0; expected more than 0"),
        ({"threads": 0}, "threads: got 0; expected more than 0"),
        ({"results": ("sr",)}, "results: got sr without seg; expected both"),
        ({"precision": "fp8"}, "precision: got 'fp8'; on the CPU it is 'auto'"),
        ({"precision": "fp16", "device": "cpu"}, "precision: got 'fp16'; on the CPU it is 'auto'"),
        ({"precision": "int8", "device": "cuda:1"}, "precision: got 'int8'; on a GPU it is 'auto'"),
        (
            {"stow": ("nonsense",)},
            "stow: got 'nonsense'; expected a URL with http:// or https:// and a host, as",
        ),
        ({"stow": ("http://a/dicom-web", "ftp://a/b")}, "stow: got 'ftp://a/b'; expected a URL with http"),
        ({"stow": ("https:///dicom-web",)}, "stow: got 'https:///dicom-web'; expected"),
        ({"stow": ("http://a:99999/",)}, "stow: got 'http://a:99999/'; expected"),
        ({"stow": ("http://[::1/",)}, r"stow: got 'http://\[::1/'; expected"),
        (
            {"folder": (Path("/nowhere/results"),)},
            "folder: got /nowhere/results, from which the node removes",
        ),
        ({"folder": (Path("/out"), Path("/nowhere/dead/a"))}, "folder: got /nowhere/dead/a, from which"),
        (
            {"commit": ("A@10.0.0.5:104", "B@10.0.0.6:104", "A@10.0.0.7:104")},
            "commit: got A@10.0.0.5:104, .*; expected one address for each AE title",
        ),
        ({"send": ("A@h:1,B@h:2",)}, "send: got 'A@h:1,B@h:2'; expected AE@host:port, as"),
        ({"retry_s": 0.0}, "retry_s: got 0; expected more than 0"),
        ({"retry_most_s": 0.0}, "retry_most_s: got 0; expected more than 0"),
        *(
            (
                {name: Path("/a.pem") for name in names},
                "tls: got .*; expected tls_cert, tls_key and tls_ca together",
            )
            for names in (("tls_ca",), ("tls_cert", "tls_key"), ("tls_key", "tls_ca"))
        ),
        ({"results": ()}, r"results: got \[\]; expected some of seg, sr, sc"),
    ],
)
def test_a_setting_that_no_node_can_run_with_is_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        Config(Path("/nowhere"), **{"folder": (Path("/nowhere"),), **settings})


@pytest.mark.parametrize("line", ['store = ""', 'folder = [""]', 'folder = ""', 'tls_cert = ""'])
def test_an_empty_path_in_a_file_is_not_the_current_folder(tmp_path, line):
    settings = tmp_path / "node.toml"
    settings.write_text(line + "\n")
    with pytest.raises(ArgumentError, match=f"{line.partition(' ')[0]}: got an empty path"):
        load(settings, {})


def test_urls_that_results_may_go_to():
    urls = ("http://127.0.0.1:8042/dicom-web", "https://[::1]/studies", "https://archive.example")
    assert Config(Path("/nowhere"), stow=urls).destinations == tuple(f"stow:{url}" for url in urls)


def test_a_place_that_is_named_twice_gets_each_result_once():
    twice = {"folder": ["/out", "/out/"], "send": ["A@127.0.0.1:4242"] * 2, "stow": ["http://a/b"] * 2}
    config = load(None, {"store": "/nowhere", **twice})
    assert config.destinations == ("send:A@127.0.0.1:4242", "stow:http://a/b", "folder:/out")


def test_limits_of_memory_that_a_node_can_run_with():
    for receiver, worker in ((0, 0), (250, 500)):
        config = Config(Path("/nowhere"), folder=(Path("/nowhere"),), receiver_mb=receiver, worker_mb=worker)
        assert (config.receiver_mb, config.worker_mb) == (receiver, worker)


def test_a_device_that_is_found_out_at_the_start_may_be_a_gpu():
    assert Config(Path("/nowhere"), folder=(Path("/nowhere"),), precision="fp16").precision == "fp16"


def test_no_port_for_metrics_is_no_port_of_the_node():
    assert Config(Path("/nowhere"), folder=(Path("/nowhere"),), port=0, http_port=0).http_port == 0


def test_a_port_for_metrics_that_is_taken_is_refused_by_name(tmp_path):
    pytest.importorskip("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ArgumentError, match=rf"http_port: got 127\.0\.0\.1 and {port}, where this machine"
        ):
            metrics.serve(Spool(tmp_path), "127.0.0.1", port, dict)


def test_metrics_are_served_over_ipv6(tmp_path):
    pytest.importorskip("prometheus_client")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    server = metrics.serve(Spool(tmp_path), "::1", 0, lambda: {"work": True})
    with urllib.request.urlopen(f"http://[::1]:{server.server_address[1]}/health") as answer:
        assert answer.read() == b'{"work": true}'
    server.shutdown()


def test_a_caller_of_metrics_that_does_not_wait_is_a_line_of_the_log(tmp_path, monkeypatch, caplog, capfd):
    pytest.importorskip("prometheus_client")
    asked, is_gone = threading.Event(), threading.Event()

    def generate(_):
        asked.set()
        is_gone.wait(10)
        return b"x"

    monkeypatch.setattr("prometheus_client.generate_latest", generate)
    server = metrics.serve(Spool(tmp_path), "127.0.0.1", 0, dict)
    with socket.create_connection(server.server_address) as caller:
        caller.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        asked.wait(10)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends by a reset
    is_gone.set()
    wait_for(lambda: [one.getMessage() for one in caplog.records] == ["metrics not answered"])
    server.shutdown()
    assert "Traceback" not in capfd.readouterr().err


def test_where_a_node_cannot_listen_is_refused_at_its_start(monkeypatch):
    monkeypatch.setattr(run, "_LEFT_OVER", 0.2)
    listens = socket.create_server(("127.0.0.1", 0))
    with listens, pytest.raises(ArgumentError, match=r"host, port: got 127\.0\.0\.1 and .* cannot listen"):
        run._check_port("127.0.0.1", listens.getsockname()[1])
    with pytest.raises(ArgumentError, match=r"host, port: got 300\.1\.1\.1 and 11112"):
        run._check_port("300.1.1.1", 11112)


def test_a_store_of_another_version_is_refused_and_left_as_it_is(tmp_path):
    spool = Spool(tmp_path)
    spool.do("INSERT INTO series(uid, state) VALUES('1/2', 'open')")
    spool.do("PRAGMA user_version=2")
    spool.close()
    with pytest.raises(OutputError, match=r"of version 2, here they are of \d\); let that one finish"):
        Spool(tmp_path)
    with sqlite3.connect(tmp_path / "spool.sqlite") as db:
        assert db.execute("SELECT state FROM series").fetchall() == [("open",)]


@pytest.mark.parametrize("table", ["instance", "delivery", "of_series"])
def test_a_damaged_store_is_refused_before_anything_is_removed_from_it(tmp_path, table):
    spool = filled(Config(tmp_path / "store", folder=(tmp_path,)))[0]
    page = spool.row("SELECT rootpage FROM sqlite_master WHERE name=?", table)[0]
    size = spool.row("PRAGMA page_size")[0]
    spool.check()
    spool.close()
    with (tmp_path / "store" / "spool.sqlite").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    given = ["--store", tmp_path / "store", "--folder", tmp_path, "--port", str(free_port())]
    command = [sys.executable, "-m", "trtseg", "serve", *given]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "spool.sqlite is damaged; put a copy of the whole store back" in ended.stderr
    assert len(list((tmp_path / "store" / "instances").iterdir())) == 3


def test_a_store_that_cannot_be_locked_is_named(tmp_path):
    spool = Spool(tmp_path)
    (tmp_path / "node.lock").mkdir()
    with pytest.raises(OutputError, match=r"cannot be used as the store of a node \(.*node\.lock"):
        spool.lock("node")


def test_a_store_has_one_node(tmp_path):
    first, second = Spool(tmp_path), Spool(tmp_path)
    with first.lock("node", wait=False), pytest.raises(OutputError, match="another node uses this store"):
        second.lock("node", wait=False)
    second.lock("node", wait=False).close()


@pytest.fixture
def tls(tmp_path):
    """Certificate, key and authority in files; the key is another one's in ``foreign``, locked in ``locked``."""
    certificates(tmp_path, "own", "foreign")
    locked = ["-aes128", "-passout", "pass:secret", "-out", tmp_path / "locked.key"]
    subprocess.run(["openssl", "ec", "-in", tmp_path / "own.key", *locked], check=True, capture_output=True)
    (tmp_path / "no.pem").write_text("no certificate")
    return {name: tmp_path / file for name, file in zip(TLS, ("own.pem", "own.key", "own.pem"), strict=True)}


TLS = ("tls_cert", "tls_key", "tls_ca")


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        *((name, "missing.pem", "No such file or directory") for name in TLS),
        *((name, "no.pem", ".") for name in TLS),
        ("tls_key", "foreign.key", "mismatch"),
        ("tls_key", "locked.key", "."),
    ],
)
def test_files_for_tls_that_cannot_be_used_are_refused(tls, tmp_path, name, file, reason):
    config = Config(tmp_path / "store", folder=(tmp_path,), **tls)
    assert tls_context(config, server=True) is not None
    config = Config(tmp_path / "store", folder=(tmp_path,), **tls | {name: tmp_path / file})
    with pytest.raises(
        ArgumentError, match=rf"tls_cert, tls_key, tls_ca: got .*{file}.* cannot be used \(.*{reason}"
    ):
        tls_context(config, server=True)


def test_the_command_ends_where_files_for_tls_cannot_be_read(tmp_path):
    (tmp_path / "node.toml").write_text("".join(f'{name} = "{tmp_path}/no.pem"\n' for name in TLS))
    options = ["--config", tmp_path / "node.toml", "--store", tmp_path / "store", "--folder", tmp_path]
    ended = subprocess.run(
        [sys.executable, "-m", "trtseg", "serve", *options, "--device", "cpu"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "tls_cert, tls_key, tls_ca: got" in ended.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("package", "settings", "is_needed"),
    [
        ("pydicom", {}, True),
        ("pynetdicom", {}, True),
        ("highdicom", {}, True),
        ("prometheus_client", {}, False),
        ("prometheus_client", {"http_port": 9112}, True),
        ("dicomweb_client", {}, False),
        ("dicomweb_client", {"stow": ("http://a/dicom-web",)}, True),
    ],
)
def test_a_package_that_is_not_installed_is_named_before_the_node_starts(
    package, settings, is_needed, tmp_path, monkeypatch
):
    """The extra ``dicom`` does for a node without metrics and STOW-RS."""
    config = Config(tmp_path / "store", folder=(tmp_path,), **settings)
    check_installed(config)
    monkeypatch.setitem(sys.modules, package, None)
    if not is_needed:
        check_installed(config)
        return
    with pytest.raises(InputError, match=rf"a node needs {package}, .*; pip install 'trtseg\[node\]'"):
        check_installed(config)
