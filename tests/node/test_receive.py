"""What the node takes, what it refuses, and with which status."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import socket
import sqlite3
import ssl
import struct
import sys
import time

import pydicom
import pytest
from nodes import Archive, certificates, connect, ct_series, free_port, send, wait_for

from trtseg.io.dicom.frames import CT_IMAGE as CT
from trtseg.node import receive as receiving
from trtseg.node.again import is_same_image
from trtseg.node.config import Config
from trtseg.node.ending import look
from trtseg.node.forward import report_commitments
from trtseg.node.spool import Spool


@pytest.fixture
def serve(tmp_path):
    """Make a receiver in this process: ``serve(**settings) -> (config, spool)``."""
    servers = []

    def start(**settings):
        settings = {
            "store": tmp_path / "store",
            "folder": (tmp_path,),
            "free_mb": 1,
            "port": free_port(),
            **settings,
        }
        config = Config(**settings)
        spool = Spool(config.store)
        server, receiver = receiving.start(config, spool)
        servers.append(server)
        spool.receiver = receiver
        return config, spool

    yield start
    for server in servers:
        server.shutdown()


def stored(spool):
    return [row["sop"] for row in spool.rows("SELECT sop FROM instance ORDER BY id")]


def ended(spool):
    """How the associations ended, once they all have."""
    wait_for(
        lambda: (
            spool.receiver.look_after_associations()
            or not spool.rows("SELECT 1 FROM association WHERE ended IS NULL")
        )
    )
    return [row["how"] for row in spool.rows("SELECT how FROM association ORDER BY id")]


def test_an_echo_and_a_series(serve):
    config, spool = serve()
    association = connect(config.port)
    assert association.send_c_echo().Status == 0
    series = ct_series(3)
    assert [association.send_c_store(one).Status for one in series] == [0, 0, 0]
    association.release()
    assert stored(spool) == [one.SOPInstanceUID for one in series]
    for row, one in zip(spool.rows("SELECT * FROM instance"), series, strict=True):
        path = spool.path("instances", row["file"])
        assert pydicom.dcmread(path) == one
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    assert ended(spool) == ["released"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (("5", "7", "3"), (5, "7", 3)),
        (("1", "0", "99999"), (1, "0", 99_999)),
        (("0", None, "100000"), (None, None, None)),
        (("-4", "-1", None), (None, "-1", None)),
        ((None, None, ""), (None, None, None)),
    ],
)
def test_the_numbers_of_instances_that_headers_speak_of_are_kept(serve, said, kept):
    config, spool = serve()
    (one,) = ct_series(1)
    names = ("NumberOfSeriesRelatedInstances", "AcquisitionNumber", "ImagesInAcquisition")
    for name, value in zip(names, said, strict=True):
        if value is None:
            one.pop(name, None)
        else:
            setattr(one, name, value)
    assert send(config.port, [one]) == [0]
    assert tuple(spool.row("SELECT related, acquisition, in_acquisition FROM instance")) == kept


def test_the_same_instance_twice_is_stored_once_and_another_of_its_name_is_refused(serve):
    config, spool = serve()
    (one,) = ct_series(1)
    assert send(config.port, [one, one]) == [0, 0]
    assert send(config.port, [one]) == [0]
    one.PixelData = bytes(len(one.PixelData))
    assert send(config.port, [one]) == [0xC100]
    assert len(stored(spool)) == len(list((config.store / "instances").iterdir())) == 1


@pytest.mark.parametrize(
    ("tag", "value", "status"),
    [
        ("ContentTime", "120000", 0),
        ("RescaleSlope", "1.0", 0),
        ("RescaleIntercept", "-1000", 0xC100),
        ("ImagePositionPatient", [0, 0, 7.5], 0xC100),
        ("SeriesInstanceUID", "1.2.3.4.5", 0xC100),
        ("StudyInstanceUID", "1.2.3.4.5", 0xC100),
        ("PatientID", "another", 0xC100),
        ("PatientName", "Other^One", 0xC100),
        ("RescaleType", "US", 0xC100),
        ("NumberOfFrames", "1", 0xC100),
    ],
)
def test_the_same_image_in_other_bytes_is_not_missing(serve, tag, value, status):
    config, spool = serve()
    first, one = ct_series(2)
    assert send(config.port, [first, one]) == [0, 0]
    setattr(one, tag, value)
    assert send(config.port, [one]) == [status]
    assert len(stored(spool)) == 2
    assert ended(spool) == ["released"] * 2
    refused = spool.row("SELECT refused FROM association ORDER BY id DESC")["refused"]
    assert refused == (status != 0)


def test_an_image_in_another_transfer_syntax_is_the_same(tmp_path):
    (one,) = ct_series(1)
    one.add_new((0x0009, 0x0010), "LO", "A PROGRAM")
    one.add_new((0x0009, 0x1001), "DS", "1.50")
    pydicom.dcmwrite(tmp_path / "stored.dcm", one, enforce_file_format=True)
    one.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    sent = io.BytesIO()
    pydicom.dcmwrite(sent, one, implicit_vr=True, little_endian=True, enforce_file_format=True)
    assert is_same_image(tmp_path / "stored.dcm", sent.getvalue())
    assert not is_same_image(tmp_path / "stored.dcm", sent.getvalue()[:-2])
    assert not is_same_image(tmp_path / "stored.dcm", b"no DICOM")
    assert not is_same_image(tmp_path / "lost.dcm", sent.getvalue())


def test_what_is_no_ct_is_refused_with_a_status(serve):
    config, spool = serve()
    mr, other, nameless, huge = ct_series(4)
    mr.SOPClassUID = mr.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    mr.Modality = "MR"
    other.Modality = "PT"
    del nameless.SeriesInstanceUID
    huge.Rows = huge.Columns = 60000
    assert send(config.port, [mr], contexts=[mr.SOPClassUID]) == [0x0122]
    assert send(config.port, [other, nameless, huge]) == [0xA900, 0xC000, 0xC101]
    assert stored(spool) == []
    assert list((config.store / "instances").iterdir()) == []


def test_who_may_call(serve, caplog):
    caplog.set_level(logging.WARNING, "trtseg.node")
    config, spool = serve(allow=("CT1@127.0.0.1", "CT2@10.0.0.0/8"))
    assert connect(config.port, ae="CT1").is_established
    for options, why in (({"ae": "CT2"}, 3), ({"ae": "CT3"}, 3), ({"ae": "CT1", "called": "OTHER"}, 7)):
        association = connect(config.port, **options)
        assert association.is_rejected, options
        assert association.acceptor.primitive.diagnostic == why
    refused = [record.facts for record in caplog.records if record.message == "association refused"]
    assert [(one["calling"], one["called"], one["reason"]) for one in refused] == [
        ("CT2", "TRTSEG", "AE title not allowed"),
        ("CT3", "TRTSEG", "AE title not allowed"),
        ("CT1", "OTHER", "calls another AE title"),
    ]
    assert spool.row("SELECT value FROM counter WHERE name='associations_refused'")[0] == 3
    config, _ = serve(allow=("*@10.0.0.0/8",), port=free_port())
    association = connect(config.port)
    assert not association.is_established
    assert not association.is_rejected  # it did not come so far


def associate_rq(called=b"TRTSEG", calling=b"CT1"):
    """An A-ASSOCIATE-RQ for CT in Explicit VR Little Endian, byte by byte."""

    def item(kind, data):
        return struct.pack(">BBH", kind, 0, len(data)) + data

    syntaxes = item(0x30, CT.encode()) + item(0x40, b"1.2.840.10008.1.2.1")
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3")
    body = struct.pack(">HH", 1, 0) + called.ljust(16) + calling.ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, b"\x01\0\0\0" + syntaxes) + item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


@pytest.mark.parametrize("established", [False, True])
def test_a_pdu_that_claims_4_gb_ends_its_association_alone(serve, established):
    config, _ = serve()
    with socket.create_connection(("127.0.0.1", config.port)) as raw:
        raw.settimeout(10)
        if established:
            raw.sendall(associate_rq())
            assert raw.recv(6)[0] == 2  # accepted
        before = _memory()
        raw.sendall(struct.pack(">BBL", 4 if established else 1, 0, 0xFFFFFFFF) + bytes(100_000))
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):  # until it is closed; a timeout fails
                pass
    assert _memory() - before < 50_000_000
    assert send(config.port, ct_series(1)) == [0]


def _memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096


def test_an_instance_that_is_too_large_is_not_collected(serve):
    config, spool = serve(instance_mb=1)
    one, large = ct_series(2)
    large.PixelData = bytes(2_000_000)
    association = connect(config.port)
    assert association.send_c_store(one).Status == 0
    assert association.send_c_store(large).get("Status") is None
    wait_for(lambda: not association.is_established)
    assert stored(spool) == [one.SOPInstanceUID]
    assert ended(spool) == ["broken off"]
    assert send(config.port, ct_series(1)) == [0]


@pytest.mark.parametrize(
    ("parts", "how"), [(0, "aborted"), (1, "broken off"), (2, "broken off"), (None, "broken off")]
)
def test_a_sender_that_aborts_between_instances_has_not_broken_off(serve, monkeypatch, parts, how):
    """And one that does not wait for its answer has."""
    from pynetdicom.dimse_messages import C_STORE_RQ
    from pynetdicom.dimse_primitives import C_STORE

    config, spool = serve(pdu_kb=4)
    *series, last = ct_series(3)
    association = connect(config.port)
    assert [association.send_c_store(one).Status for one in series] == [0, 0]
    monkeypatch.setattr(receiving.Receiver, "_check_space", lambda *_: time.sleep(0.5))
    request = C_STORE()
    request.MessageID, request.Priority = 7, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = last.SOPClassUID, last.SOPInstanceUID
    file = io.BytesIO()
    pydicom.dcmwrite(file, last, implicit_vr=False, little_endian=True)
    request.DataSet = file
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    (context,) = (one for one in association.accepted_contexts if one.abstract_syntax == CT)
    pieces = list(message.encode_msg(context.context_id, association.dimse.maximum_pdu_size))
    assert len(pieces) > 3
    for piece in pieces[:parts]:
        association.dul.send_pdu(piece)
    association.abort()
    assert ended(spool) == [how]
    assert look(spool)[1].broken_off is (how == "broken off")


def test_messages_that_do_not_wait_for_answers_end_their_association(serve):
    config, _ = serve()
    association = connect(config.port)
    time.sleep(0.1)
    from pynetdicom.dimse_primitives import C_ECHO

    for number in range(200):
        request = C_ECHO()
        request.MessageID, request.AffectedSOPClassUID = number + 1, "1.2.840.10008.1.1"
        context = next(c for c in association.accepted_contexts if c.abstract_syntax == "1.2.840.10008.1.1")
        association.dimse.send_msg(request, context.context_id)
    wait_for(lambda: association.is_aborted or not association.is_established)
    assert send(config.port, ct_series(1)) == [0]


def test_limits_of_series_and_space(serve):
    config, _ = serve(series_instances=2, open_series=1)
    assert send(config.port, ct_series(3)) == [0, 0, 0xA700]
    assert send(config.port, ct_series(1)) == [0xA700]  # a second series
    config, _ = serve(disk_mb=0, port=free_port())
    assert send(config.port, ct_series(1)) == [0xA700]
    config, _ = serve(free_mb=10**9, port=free_port())
    assert send(config.port, ct_series(1)) == [0xA700]


def test_an_association_is_marked_by_what_was_refused_of_a_ct(serve):
    config, spool = serve(series_instances=2)
    assert send(config.port, ct_series(5)) == [0, 0, 0xA700, 0xA700, 0xA700]
    mr = ct_series(1)[0]
    mr.SOPClassUID = mr.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    assert send(config.port, [mr, *ct_series(2)], contexts=[mr.SOPClassUID, CT]) == [0x0122, 0, 0]

    def marks():
        return [row["refused"] for row in spool.rows("SELECT refused FROM association ORDER BY id")]

    assert marks() == [3, 0]
    wait_for(lambda: spool.receiver.look_after_associations() or not spool.receiver._open)
    assert marks() == [3, 0]


def test_what_was_refused_on_an_association_of_its_own_is_missing_until_it_is_sent_again(serve):
    config, spool = serve(series_instances=6)
    series = ct_series(8)
    assert [send(config.port, [one])[0] for one in series] == [0] * 6 + [0xA700] * 2
    wait_for(lambda: spool.receiver.look_after_associations() or not spool.receiver._open)
    found = look(spool)[1]
    assert (found.refused, found.clean) == (2, False)
    assert send(config.port, series[6:7]) == [0xA700]
    assert look(spool)[1].refused == 2
    spool.receiver.config = dataclasses.replace(config, series_instances=8)
    assert send(config.port, series[6:]) == [0, 0]
    wait_for(lambda: spool.receiver.look_after_associations() or not spool.receiver._open)
    found = look(spool)[1]
    assert (found.refused, found.clean) == (0, True)


def test_a_refusal_says_nothing_of_another_series_on_its_association(serve):
    config, spool = serve(open_series=1)
    one, other = ct_series(2), ct_series(2, seed=1)
    assert send(config.port, [one[0], *other, one[1]]) == [0, 0xA700, 0xA700, 0]
    assert look(spool)[1].refused == 0


def test_a_mark_that_a_full_disk_forbids_is_made_with_the_end_of_the_association(serve, monkeypatch):
    config, spool = serve(series_instances=1)
    do = spool.do

    def full(statement, *values):
        if statement.startswith("UPDATE association SET refused"):
            raise sqlite3.OperationalError("database or disk is full")
        return do(statement, *values)

    monkeypatch.setattr(spool, "do", full)
    assert send(config.port, ct_series(2)) == [0, 0xA700]
    wait_for(lambda: spool.receiver.look_after_associations() or not spool.receiver._open)
    assert tuple(spool.row("SELECT how, refused FROM association")) == ("released", 1)


def test_who_only_looks_whether_the_port_is_open_takes_no_association(serve):
    """As load balancers and monitors do."""
    config, _ = serve(associations=2)
    for data in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\0" * 300):
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", config.port)) as probe:
                probe.sendall(data)
    wait_for(lambda: connect(config.port).is_established, seconds=5)


def test_too_many_associations_are_rejected(serve, caplog):
    caplog.set_level(logging.WARNING, "trtseg.node")
    config, spool = serve(associations=2)
    first, second, third = (connect(config.port) for _ in range(3))
    assert first.is_established
    assert second.is_established
    assert third.is_rejected
    (facts,) = [record.facts for record in caplog.records if record.message == "association refused"]
    assert facts["reason"] == "too many associations"
    assert spool.row("SELECT value FROM counter WHERE name='associations_refused'")[0] == 1
    first.release()
    wait_for(lambda: connect(config.port).is_established)


def test_a_store_that_cannot_be_written_says_so_and_stays_alive(serve, monkeypatch):
    config, _ = serve()
    monkeypatch.setattr("trtseg.node.spool.os.fsync", _no_space)
    assert send(config.port, ct_series(2)) == [0xA700, 0xA700]
    monkeypatch.undo()
    assert list((config.store / "instances").iterdir()) == []
    assert send(config.port, ct_series(2)) == [0, 0]


def _no_space(_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("commit", "status", "reason"),
    [
        ((), 0x0110, "not listed in 'commit'"),
        (("CT1@127.0.0.1:9",), 0x0115, "no request for 1 to 10000 instances"),
    ],
)
def test_a_request_for_commitment_by_somebody_unknown_or_for_nothing(serve, caplog, commit, status, reason):
    import pydicom

    config, spool = serve(commit=commit)
    association = connect(config.port, contexts=[receiving.STORAGE_COMMITMENT])
    request = pydicom.Dataset()
    request.TransactionUID = "1.2.3"
    with caplog.at_level(logging.WARNING):
        answer, _ = association.send_n_action(
            request, 1, receiving.STORAGE_COMMITMENT, f"{receiving.STORAGE_COMMITMENT}.1"
        )
    assert answer.Status == status
    assert spool.rows("SELECT * FROM commitment") == []
    (facts,) = [one.facts for one in caplog.records if one.getMessage() == "storage commitment refused"]
    assert facts["calling"] == "CT1"
    assert facts["reason"].startswith(reason)


@pytest.mark.parametrize(("count", "status"), [(0, 0x0115), (2, 0x0000), (10_000, 0x0000), (10_001, 0x0115)])
def test_commitment_of_what_is_stored_is_reported_to_who_asked_for_it(serve, count, status):
    with Archive() as archive:
        config, spool = serve(commit=(f"CT1@127.0.0.1:{archive.port}",))
        archive.entity.ae_title = "CT1"
        series = ct_series(2)
        assert send(config.port, series) == [0, 0]
        request = pydicom.Dataset()
        request.TransactionUID, request.ReferencedSOPSequence = "1.2.3", []
        for number in range(count):
            item = pydicom.Dataset()
            item.ReferencedSOPClassUID = CT
            item.ReferencedSOPInstanceUID = series[number % 2].SOPInstanceUID
            request.ReferencedSOPSequence.append(item)
        association = connect(config.port, contexts=[receiving.STORAGE_COMMITMENT])
        answer, _ = association.send_n_action(
            request, 1, receiving.STORAGE_COMMITMENT, f"{receiving.STORAGE_COMMITMENT}.1"
        )
        association.release()
        assert answer.Status == status
        if status:
            assert spool.rows("SELECT * FROM commitment") == []
        elif count == 2:
            report_commitments(spool, config)
            ((event, report),) = archive.reports
            assert (event, report.TransactionUID) == (1, "1.2.3")
            stored = [
                (one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
                for one in report.ReferencedSOPSequence
            ]
            assert stored == [(CT, one.SOPInstanceUID) for one in series]


def test_the_receiver_needs_no_nets():
    import subprocess

    code = "import sys, trtseg.node.receive, trtseg.node.guard, pydicom; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"openvino", "highdicom", "trtseg.api"} & set(loaded)


def test_tls_asks_for_a_certificate(serve, tmp_path):
    """With a certificate that the node knows a caller is let in, without it is not."""
    certificates(tmp_path, "own", "foreign")
    own = tmp_path / "own.pem"
    config, _ = serve(tls_cert=own, tls_key=tmp_path / "own.key", tls_ca=own)

    def context(name):
        made = ssl.create_default_context(cafile=own)
        if name:
            made.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        return made, "127.0.0.1"

    assert send(config.port, ct_series(1), tls_args=context("own")) == [0]
    for options in ({"tls_args": context("foreign")}, {"tls_args": context(None)}, {}):
        assert not connect(config.port, **options).is_established
    assert send(config.port, ct_series(1), tls_args=context("own")) == [0]
