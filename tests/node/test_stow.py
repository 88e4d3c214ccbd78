"""Results reach a DICOMweb server, wait for it, or are put aside with the reason."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import socket
import ssl
import threading
import time

import pytest
from nodes import again, attempt, certificates, ct_series, filled, states

from trtseg.node.config import Config

pytest.importorskip("dicomweb_client")


class _Web(http.server.BaseHTTPRequestHandler):
    codes: tuple = ()
    got: tuple = ()
    kind, answer = "application/dicom+json", b"{}"
    asked_by: str | None = None

    def do_POST(self):
        length = self.headers["Content-Length"]
        body = self._chunks() if length is None else self.rfile.read(int(length))
        code, *_Web.codes = _Web.codes
        code = code if body else 400
        _Web.asked_by = self.headers["Authorization"]
        _Web.got = (*_Web.got, body) if code == 200 else _Web.got
        self.send_response(code)
        if self.kind:
            self.send_header("Content-Type", self.kind)
        self.end_headers()
        self.wfile.write(self.answer)

    def _chunks(self):
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


@pytest.fixture
def config(tmp_path):
    """Settings of a node that sends to a server of `_Web`."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Config(tmp_path / "store", stow=(f"http://127.0.0.1:{server.server_address[1]}/dicom-web",))
    server.shutdown()


def test_stow(config):
    spool, uids, _ = filled(config)
    _Web.codes, _Web.got = [200, 409, 403], ()
    attempt(spool, config)
    assert states(spool) == ["sent", "dead", "waiting"]
    _Web.codes = [200]
    again(spool, config)
    assert states(spool) == ["sent", "dead", "sent"]
    assert [uid.encode() in body for uid, body in zip(uids[::2], _Web.got, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("kind", "item", "state"),
    [
        (
            "application/dicom+json",
            '{"00081197": {"vr": "US", "Value": [272]}}',
            ("dead", "failure reason 0x0110"),
        ),
        ("application/dicom+json; charset=utf-8", "{}", ("dead", "failure reason 0x0000")),
        ("text/plain", "no JSON", ("sent", None)),
        ("", "no JSON", ("sent", None)),
    ],
)
def test_what_a_server_says_with_its_success(config, monkeypatch, kind, item, state):
    spool, _, _ = filled(config, 1)
    answer = f'{{"00081198": {{"vr": "SQ", "Value": [{item}]}}}}'
    monkeypatch.setattr(_Web, "kind", kind)
    monkeypatch.setattr(_Web, "answer", answer.encode())
    _Web.codes = [202]
    attempt(spool, config)
    assert tuple(spool.row("SELECT state, reason FROM delivery")) == state


def test_a_large_result_waits_for_a_busy_server(config):
    spool, _, _ = filled(config, 1)
    (large,) = ct_series(1)
    large.PixelData = bytes(2_000_000)  # is sent in chunks
    path = spool.path("results", *spool.files("result"))
    large.save_as(path, enforce_file_format=True)
    spool.do("UPDATE result SET bytes=?", path.stat().st_size)
    _Web.codes, _Web.got = [503, 200], ()
    attempt(spool, config)
    assert states(spool) == ["waiting"]
    again(spool, config)
    assert states(spool) == ["sent"]
    assert len(_Web.got[0]) > 2_000_000


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("trtseg.node.forward.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = Config(tmp_path / "store", stow=(f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web",))
        spool, _, _ = filled(config, 1)
        start = time.monotonic()
        attempt(spool, config)
    assert time.monotonic() - start < 10
    assert tuple(spool.row("SELECT state, reason FROM delivery")) == ("waiting", "no connection (timed out)")


def test_a_password_goes_to_the_server_and_not_into_the_log(config, caplog):
    caplog.set_level("INFO")
    address = config.stow[0].removeprefix("http://")
    config = dataclasses.replace(config, stow=(f"http://node:pass%40word@{address}",))
    spool, _, _ = filled(config)
    _Web.codes, _Web.got = [200, 409, 403], ()
    attempt(spool, config)
    assert states(spool) == ["sent", "dead", "waiting"]
    assert _Web.asked_by == "Basic " + base64.b64encode(b"node:pass@word").decode()
    lines = {one.message: one.facts for one in caplog.records if hasattr(one, "facts")}
    assert set(lines) == {"result sent", "result rejected", "destination not reached"}
    assert {facts["to"] for facts in lines.values()} == {f"http://{address}"}


def test_the_log_says_why_a_server_is_not_reached(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    config = Config(tmp_path / "store", stow=(f"http://127.0.0.1:{port}/dicom-web",))
    spool, _, _ = filled(config)
    attempt(spool, config)
    (line,) = [one.facts for one in caplog.records if one.message == "destination not reached"]
    assert (line["to"], line["reason"]) == (config.stow[0], "no connection (Connection refused)")


@pytest.mark.parametrize("trusted", [True, False])
def test_a_server_of_the_hospitals_own_authority_is_trusted_by_the_environment(
    config, tmp_path, monkeypatch, trusted
):
    certificates(tmp_path, "hospital", "other")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "hospital.pem", tmp_path / "hospital.key")
    server = http.server.HTTPServer(("127.0.0.1", 0), _Web)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / ("hospital.pem" if trusted else "other.pem")))
    config = dataclasses.replace(config, stow=(f"https://127.0.0.1:{server.server_address[1]}/dicom-web",))
    spool, _, _ = filled(config, 1)
    _Web.codes, _Web.got = [200], ()
    attempt(spool, config)
    server.shutdown()
    assert states(spool) == ["sent" if trusted else "waiting"]
    reason = spool.row("SELECT reason FROM delivery")[0]
    assert trusted or "CERTIFICATE_VERIFY_FAILED" in reason
