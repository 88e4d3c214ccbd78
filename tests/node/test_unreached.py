"""What the log says of destinations that are not reached."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import ssl
import threading

import pytest
from nodes import Archive, attempt, certificates, filled, free_port, states

from trtseg.node.config import Config
from trtseg.node.forward import report_commitments
from trtseg.node.spool import Spool

REQUEST = json.dumps({"transaction": "1.2.840.1", "references": [("1.2.840.10008.5.1.4.1.1.2", "1.2.3")]})


def not_reached(config, caplog, destination=None):
    """Where to and why not, as the log says after an attempt."""
    spool, _, _ = filled(config)
    attempt(spool, config, destination)
    assert states(spool) == ["waiting"] * 3
    (line,) = [one.facts for one in caplog.records if one.message == "destination not reached"]
    return line["to"], line["reason"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("127.0.0.1:{free}", "no connection (Connection refused)"),
        ("name.invalid:104", "no connection ("),
        ("127.0.0.1:{archive}", "association rejected (Called AE title not recognised)"),
        ("127.0.0.1:{silent}", "connected, but no association was granted"),
    ],
)
def test_the_log_says_which_destination_is_not_reached_and_why(tmp_path, caplog, place, reason):
    with Archive() as archive, socket.create_server(("127.0.0.1", 0)) as silent:
        archive.entity.require_called_aet = True

        def hang_up():
            with contextlib.suppress(OSError):  # closed, if nobody called
                called, _ = silent.accept()
                called.recv(10_000)
                called.close()

        threading.Thread(target=hang_up, daemon=True).start()
        ports = {"free": free_port(), "archive": archive.port, "silent": silent.getsockname()[1]}
        name = "OTHER@" + place.format(**ports)
        to, why = not_reached(Config(tmp_path / "store", send=(name,)), caplog)
    assert to == name
    assert why.startswith(reason)


@pytest.mark.parametrize(
    ("server", "known", "reason"),
    [
        ("stranger", "stranger", "CERTIFICATE_VERIFY_FAILED"),  # not by whom the node trusts
        ("archive", "stranger", "UNKNOWN_CA"),  # does not trust the node
        (None, None, "WRONG_VERSION_NUMBER"),  # speaks no TLS
    ],
)
def test_the_log_says_what_is_wrong_with_tls(tmp_path, caplog, server, known, reason):
    certificates(tmp_path, "node", "archive", "stranger")
    tls = None
    if server:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / f"{known}.pem"))
        tls.load_cert_chain(tmp_path / f"{server}.pem", tmp_path / f"{server}.key")
        tls.verify_mode = ssl.CERT_REQUIRED
    files = {"tls_cert": "node.pem", "tls_key": "node.key", "tls_ca": "archive.pem"}
    settings = {name: tmp_path / file for name, file in files.items()}
    with Archive(tls=tls) as archive:
        place = f"ARCHIVE@127.0.0.1:{archive.port}"
        to, why = not_reached(Config(tmp_path / "s", send=(place,), send_tls=True, **settings), caplog)
    assert to == place
    assert why.startswith("no connection (")
    assert reason in why


def test_a_certificate_that_was_renewed_badly_is_named(tmp_path, caplog):
    certificates(tmp_path, "node", "other")
    files = {
        "tls_cert": tmp_path / "node.pem",
        "tls_key": tmp_path / "other.key",
        "tls_ca": tmp_path / "node.pem",
    }
    place = f"ARCHIVE@127.0.0.1:{free_port()}"
    to, why = not_reached(Config(tmp_path / "s", send=(place,), send_tls=True, **files), caplog)
    assert to == place
    assert why.startswith(f"tls_cert, tls_key, tls_ca: got {tmp_path}/node.pem")
    assert "KEY_VALUES_MISMATCH" in why


def test_a_report_of_commitment_that_is_given_up_is_said_so(tmp_path, caplog):
    commit = (f"CT1@127.0.0.1:{free_port()}",)
    config = Config(tmp_path / "store", folder=(tmp_path,), commit=commit)
    spool = Spool(config.store)
    for ae, attempts in (("CT1", 3), ("CT1", 1000), ("FORMER", 0)):
        spool.do(
            "INSERT INTO commitment(ae, request, attempts, due) VALUES(?, ?, ?, 0)", ae, REQUEST, attempts
        )
    report_commitments(spool, config)
    lines = [
        (one.levelname, one.message, one.facts["to"], one.facts["reason"], "again_in_s" in one.facts)
        for one in caplog.records
        if one.name == "trtseg.node"
    ]
    refused = "no connection (Connection refused)"
    assert lines == [
        ("WARNING", "commitment not reported", "CT1", refused, True),
        ("ERROR", "commitment given up", "CT1", refused, False),
        ("ERROR", "commitment given up", "FORMER", "not listed in 'commit' any more", False),
    ]
    assert [tuple(row) for row in spool.rows("SELECT id, attempts FROM commitment")] == [(1, 4)]


@pytest.mark.parametrize(("ae", "attempts"), [("CT1", 1000), ("FORMER", 0)])
def test_a_report_that_is_given_up_on_a_full_disk_is_said_so_once(tmp_path, caplog, ae, attempts):
    config = Config(tmp_path / "store", folder=(tmp_path,), commit=(f"CT1@127.0.0.1:{free_port()}",))
    spool = Spool(config.store)
    spool.do("INSERT INTO commitment(ae, request, attempts, due) VALUES(?, ?, ?, 0)", ae, REQUEST, attempts)
    spool.do("PRAGMA query_only=1")
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError):
            report_commitments(spool, config)
    spool.do("PRAGMA query_only=0")
    report_commitments(spool, config)
    assert [one.message for one in caplog.records if one.name == "trtseg.node"] == ["commitment given up"]
    assert spool.rows("SELECT * FROM commitment") == []
