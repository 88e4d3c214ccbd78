"""Results reach their destination, wait for it, or are put aside with the reason."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
import threading
import time

import pydicom
import pytest
from nodes import Archive, again, attempt, certificates, ct_series, filled, free_port, states, wait_for
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import SecondaryCaptureImageStorage, SegmentationStorage, Verification

from trtseg.node.config import Config
from trtseg.node.forward import report_commitments, send_waiting
from trtseg.node.line import Line
from trtseg.node.purge import give_up, purge, waiting_elsewhere
from trtseg.node.receive import STORAGE_COMMITMENT


def test_results_wait_for_an_archive_that_is_down_or_full(tmp_path):
    port = free_port()
    config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{port}",), retry_s=10.0)
    spool, uids, _ = filled(config)
    attempt(spool, config)
    assert states(spool) == ["waiting"] * 3
    waits = spool.row("SELECT attempts, due FROM delivery")
    assert waits["attempts"] == 1
    assert 5 < waits["due"] - time.time() < 11
    attempt(spool, config)  # is not due
    assert spool.row("SELECT attempts FROM delivery")["attempts"] == 1
    again(spool, config)
    assert 15 < spool.row("SELECT due FROM delivery")["due"] - time.time() < 21
    with Archive(port) as archive:
        archive.status = 0xA700
        again(spool, config)
        assert states(spool) == ["waiting"] * 3
        archive.status = 0
        again(spool, config)
        assert states(spool) == ["sent"] * 3
        again(spool, config)
        assert [one.SOPInstanceUID for one in archive.got] == [*uids[1:], uids[0]]  # each once
    assert not list((config.store / "dead").iterdir())


def test_an_association_ends_after_a_failure_and_where_nothing_has_been_sent_for_a_while(
    tmp_path, monkeypatch
):
    with Archive() as archive:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, _, _ = filled(config, 1)
        (peer,) = config.peers.values()
        with contextlib.closing(Line(config, peer)) as line:
            archive.status = 0xA700
            send_waiting(spool, config, *config.destinations, line)
            assert not line.is_open
            archive.status = 0
            spool.do("UPDATE delivery SET due=0")
            for _ in range(2):  # the second time there is nothing to send
                send_waiting(spool, config, *config.destinations, line)
                assert line.is_open
            monkeypatch.setattr("trtseg.node.line._IDLE_S", 0)
            send_waiting(spool, config, *config.destinations, line)
            assert not line.is_open
    assert states(spool) == ["sent"]


class _Picky(Archive):
    """Aborts the association at one object."""

    bad = ""

    def _store(self, event):
        if event.dataset.SOPInstanceUID == self.bad:
            event.assoc.abort()
            return 0
        return super()._store(event)


def test_a_result_at_which_an_archive_always_fails_holds_up_no_other(tmp_path):
    with _Picky() as archive:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, uids, _ = filled(config)
        archive.bad = uids[0]
        for _ in range(3):
            again(spool, config)
        assert states(spool) == ["waiting", "sent", "sent"]
        archive.bad = ""
        again(spool, config)
        assert states(spool) == ["sent"] * 3


@pytest.mark.parametrize("cut", [None, 0, 1000])
def test_a_result_whose_file_is_lost_is_given_up_and_holds_up_no_other(tmp_path, cut, caplog):
    (tmp_path / "out").mkdir()
    config = Config(tmp_path / "store", folder=(tmp_path / "out",))
    spool, _, _ = filled(config)
    path = spool.path("results", *spool.files("result WHERE id=1"))
    path.unlink() if cut is None else os.truncate(path, cut)
    attempt(spool, config)
    assert states(spool) == ["dead", "sent", "sent"]
    assert len(list((tmp_path / "out").iterdir())) == 2
    (note,) = (config.store / "dead").glob("*.json")
    assert json.loads(note.read_text())["reason"] == "its file in the store is lost or cut off"
    assert [one.message for one in caplog.records if one.levelname == "ERROR"] == ["result rejected"]


def test_a_store_that_is_away_gives_no_result_up(tmp_path):
    (tmp_path / "out").mkdir()
    config = Config(tmp_path / "store", folder=(tmp_path / "out",))
    spool, _, _ = filled(config)
    for name in ("results", "dead"):
        (config.store / name).rename(tmp_path / name)
    attempt(spool, config)
    assert states(spool) == ["waiting"] * 3
    for name in ("results", "dead"):
        (tmp_path / name).rename(config.store / name)
    again(spool, config)
    assert states(spool) == ["sent"] * 3


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_archive_that_takes_one_transfer_syntax_gets_results_in_that(tmp_path, syntax):
    got = []

    def keep(event):
        got.append((event.context.transfer_syntax, event.dataset.SOPInstanceUID, event.dataset.PixelData))
        return 0

    archive = AE(ae_title="ARCHIVE")
    archive.add_supported_context(SecondaryCaptureImageStorage, syntax)
    port = free_port()
    server = archive.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{port}",))
        spool, uids, _ = filled(config)
        attempt(spool, config)
    finally:
        server.shutdown()
    assert states(spool) == ["sent"] * 3
    sent = [
        pydicom.dcmread(spool.path("results", row["file"])) for row in spool.rows("SELECT file FROM result")
    ]
    assert got == [(syntax, uid, one.PixelData) for uid, one in zip(uids, sent, strict=True)]


def test_a_rejected_result_is_put_aside_with_the_reason(tmp_path):
    with Archive() as archive:
        config = Config(
            tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",), keep_s=0, keep_dead_s=100
        )
        spool, uids, _ = filled(config, 1)
        archive.status = 0xA900
        attempt(spool, config)
    assert states(spool) == ["dead"]
    assert spool.row("SELECT value FROM counter WHERE name='results_dead'")["value"] == 1
    note, dicom = sorted((config.store / "dead").iterdir(), key=lambda path: path.suffix != ".json")
    assert json.loads(note.read_text())["reason"] == "status 0xA900"
    assert uids[0].encode() in dicom.read_bytes()
    assert purge(spool, 100, 100) == 0  # nothing is as old
    assert len(list((config.store / "results").iterdir())) == len(states(spool)) == 1
    assert purge(spool, config.keep_s, config.keep_dead_s) == 2  # of what is settled, the rejected stays
    assert not list((config.store / "results").iterdir())
    assert not list((config.store / "instances").iterdir())
    for table in ("series", "instance", "result", "delivery"):  # a row without a file would be an error
        assert spool.rows(f"SELECT * FROM {table}") == []
    assert dicom.exists()
    os.utime(note, (time.time() - 99, time.time() - 99))
    purge(spool, 0, 100)
    assert dicom.exists()
    os.utime(note, (time.time() - 101, time.time() - 101))
    purge(spool, 0, 100)  # although the removal of its other name has changed the object just now
    assert not list((config.store / "dead").iterdir())


@pytest.mark.parametrize("status", [0x0000, 0xA900])
def test_an_answer_that_cannot_be_noted_is_asked_for_again_after_a_while(tmp_path, monkeypatch, status):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Archive() as archive:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",), retry_s=10.0)
        spool, _, _ = filled(config, 1)
        archive.status = status
        monkeypatch.setattr("trtseg.node.spool.flush_folder", full)
        monkeypatch.setattr(spool, "count", lambda name: full() if name == "results_sent" else None)
        assert not attempt(spool, config)
        waits = spool.row("SELECT state, attempts, due FROM delivery")
        assert tuple(waits)[:2] == ("waiting", 1)
        assert waits["due"] > time.time() + 5
        monkeypatch.undo()
        again(spool, config)
    assert states(spool) == ["dead" if status else "sent"]
    assert len(list((config.store / "dead").iterdir())) == (2 if status else 0)


def test_what_an_archive_lacks_waits_if_it_is_everything_and_is_put_aside_if_it_is_not(tmp_path):
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(Verification)
    config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{free_port()}",))
    spool, _, _ = filled(config, 1)
    (peer,) = config.peers.values()
    server = entity.start_server((peer.host, peer.port), block=False)
    attempt(spool, config)
    assert tuple(spool.row("SELECT state, reason FROM delivery")) == ("waiting", "no SOP class accepted")
    server.shutdown()
    entity.add_supported_context(SegmentationStorage)  # the result is a picture
    server = entity.start_server((peer.host, peer.port), block=False)
    again(spool, config)
    assert tuple(spool.row("SELECT state, reason FROM delivery")) == ("dead", "SOP class not accepted")
    server.shutdown()


def test_no_answer_is_taken_by_another_thread(tmp_path):
    """That of pynetdicom looks for messages too, mostly when there are none."""
    with Archive() as archive:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, _, _ = filled(config)
        line = Line(config, *config.peers.values())
        association = line.open()
        association.dimse_timeout = 2
        is_over = threading.Event()

        def look():
            while not is_over.wait(0.0001):
                association.dimse.get_msg(block=False)

        thread = threading.Thread(target=look)
        thread.start()
        send_waiting(spool, config, *config.destinations, line)
        is_over.set()
        thread.join()
        line.close()
    assert states(spool) == ["sent"] * 3


def two_lines(config, helper_peer=None):
    (peer,) = config.peers.values()
    first = Line(config, peer)
    return first, Line(config, helper_peer or peer, first)


def attempts(spool):
    return {row["attempts"] for row in spool.rows("SELECT attempts FROM delivery")}


def test_two_associations_share_the_results_of_a_node(tmp_path):
    with Archive() as archive:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, uids, _ = filled(config, 6)
        first, second = two_lines(config)
        send_waiting(spool, config, *config.destinations, second)
        assert archive.got == []  # it works beside the first only
        archive.hold = threading.Event()  # the first object stays on its way
        thread = threading.Thread(target=send_waiting, args=(spool, config, *config.destinations, first))
        thread.start()
        wait_for(lambda: archive.held)
        send_waiting(spool, config, *config.destinations, second)
        assert states(spool) == ["waiting"] + ["sent"] * 5
        archive.hold.set()
        thread.join()
        assert sorted(one.SOPInstanceUID for one in archive.got) == sorted(uids)  # each once
        assert attempts(spool) == {1}
        for one in (first, second):
            one.close()


def test_what_the_second_association_could_not_send_goes_over_the_first(tmp_path):
    with Archive() as archive:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, uids, _ = filled(config)
        first, second = two_lines(config)
        first.open()
        archive.status = 0xA700
        send_waiting(spool, config, *config.destinations, second)
        archive.status = 0
        assert attempts(spool) == {0}  # nothing is put off
        send_waiting(spool, config, *config.destinations, second)
        assert archive.got == []  # it rests
        send_waiting(spool, config, *config.destinations, first)
        assert [one.SOPInstanceUID for one in archive.got] == uids
        first.close()


@pytest.mark.parametrize("answers", ["no", "never"])
def test_the_first_association_takes_all_where_a_node_takes_no_other(tmp_path, answers):
    with Archive() as archive, socket.create_server(("127.0.0.1", 0)) as silent:
        config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, uids, _ = filled(config)
        deaf = next(iter(config.peers.values()))._replace(port=silent.getsockname()[1])
        first, second = two_lines(config, deaf if answers == "never" else None)
        first.open()
        archive.entity.maximum_associations = 1
        start = time.monotonic()
        thread = threading.Thread(target=send_waiting, args=(spool, config, *config.destinations, second))
        thread.start()
        if answers == "no":
            thread.join()
        assert send_waiting(spool, config, *config.destinations, first)
        assert [one.SOPInstanceUID for one in archive.got] == uids
        assert attempts(spool) == {1}  # nothing was put off
        assert time.monotonic() - start < 5
        silent.close()  # ends the wait for an answer
        thread.join()
        assert not second.has_work
        first.close()


def test_results_wait_where_a_node_takes_no_association(tmp_path):
    config = Config(tmp_path / "store", send=(f"ARCHIVE@127.0.0.1:{free_port()}",), retry_s=10.0)
    spool, _, _ = filled(config)
    for line in two_lines(config):
        send_waiting(spool, config, *config.destinations, line)
    assert attempts(spool) == {1}
    assert spool.row("SELECT MIN(due) FROM delivery")[0] > time.time() + 5


def test_what_waits_is_never_purged(tmp_path):
    config = Config(tmp_path / "store", send=("ARCHIVE@127.0.0.1:9",))
    spool, uids, _ = filled(config)
    purge(spool, -1, -1)
    assert len(list((config.store / "results").iterdir())) == len(uids)
    assert spool.files("instance") == []
    spool.do("UPDATE delivery SET state='sent'")
    assert purge(spool, -1, -1) == len(uids)  # with their rows, although their instances went before
    for table in ("series", "result", "delivery"):
        assert spool.rows(f"SELECT * FROM {table}") == []


def test_what_waits_for_a_destination_that_was_taken_out_of_the_settings_is_not_kept_for_ever(
    tmp_path, caplog
):
    (tmp_path / "out").mkdir()
    config = Config(tmp_path / "store", send=("TYPO@127.0.0.1:9",), folder=(tmp_path / "out",))
    spool, uids, _ = filled(config)
    typo, folder = config.destinations
    assert waiting_elsewhere(spool, config.destinations) == []
    assert [row["destination"] for row in waiting_elsewhere(spool, [folder])] == [typo] * len(uids)
    give_up(spool, [folder], 100)
    assert states(spool) == ["waiting"] * 6
    spool.do("UPDATE result SET made=made-101")
    statements: list[str] = []
    spool._db.set_trace_callback(statements.append)
    give_up(spool, [folder], 100)
    spool._db.set_trace_callback(None)
    (line,) = [one for one in caplog.records if one.message == "results given up"]
    assert (line.levelname, line.facts) == ("ERROR", {"to": "TYPO@127.0.0.1:9", "results": 3})
    assert spool.row("SELECT value FROM counter WHERE name='results_dead'")["value"] == 3
    assert statements.count("COMMIT") == 1  # each takes its time on the disk, and there may be many results
    assert sorted(states(spool)) == ["dead"] * 3 + ["waiting"] * 3
    again(spool, config, folder)
    purge(spool, 0, 100)
    assert not list((config.store / "results").iterdir())


@pytest.mark.parametrize("count", [1, 3])
def test_the_wait_for_a_destination_doubles(tmp_path, count):
    config = Config(tmp_path / "store", folder=(tmp_path / "out",), retry_s=10.0, retry_most_s=60.0)
    spool, _, _ = filled(config, count)
    waits = []
    for _ in range(4):
        again(spool, config)
        waits.append(spool.row("SELECT MAX(due) FROM delivery")[0] - time.time())
    assert waits == pytest.approx([10, 20, 40, 60], abs=5)


@pytest.mark.parametrize(("of", "sent"), [("own", True), ("foreign", False), (None, False)])
def test_with_send_tls_results_go_to_who_has_a_known_certificate_and_nowhere_else(tmp_path, of, sent):
    certificates(tmp_path, "own", "foreign")
    own = tmp_path / "own.pem"
    context = None
    if of:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=own)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(tmp_path / f"{of}.pem", tmp_path / f"{of}.key")
    with Archive(tls=context) as archive:
        files = {"tls_cert": own, "tls_key": tmp_path / "own.key", "tls_ca": own}
        to = (f"ARCHIVE@127.0.0.1:{archive.port}",)
        config = Config(tmp_path / "store", send=to, send_tls=True, **files)
        spool, uids, _ = filled(config, 1)
        attempt(spool, config)
    assert states(spool) == ["sent" if sent else "waiting"]
    assert [one.SOPInstanceUID for one in archive.got] == uids * sent


def test_a_folder(tmp_path):
    config = Config(tmp_path / "store", folder=(tmp_path / "out",))
    spool, _, _ = filled(config)
    attempt(spool, config)
    assert states(spool) == ["waiting"] * 3  # there is no such folder
    (tmp_path / "out").mkdir()
    again(spool, config)
    assert states(spool) == ["sent"] * 3
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_files_in_a_folder_are_for_whom_its_default_acl_names(tmp_path):
    def acl(*entries):
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)

    nobody, everybody = 65534, 0xFFFFFFFF
    user, other = (1, 7, everybody), (0x20, 0, everybody)
    default = acl(user, (2, 6, nobody), (4, 0, everybody), (0x10, 6, everybody), other)
    (tmp_path / "out").mkdir()
    try:
        os.setxattr(tmp_path / "out", "system.posix_acl_default", default)
    except OSError:
        pytest.skip("a file system without access control lists")
    config = Config(tmp_path / "store", folder=(tmp_path / "out",))
    before = os.umask(0o077)  # as in a node
    try:
        spool, _, _ = filled(config, 1)
        attempt(spool, config)
    finally:
        os.umask(before)
    (file,) = (tmp_path / "out").iterdir()
    assert file.stat().st_mode & 0o777 == 0o660  # the middle digit is the mask of the list
    assert struct.pack("<HHI", 2, 6, nobody) in os.getxattr(file, "system.posix_acl_access")


def test_storage_commitment_is_reported_on_an_association_of_its_own(tmp_path):
    with Archive() as archive:
        config = Config(tmp_path / "store", folder=(tmp_path,), commit=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, _, instances = filled(config)
        good = [(ct_series(1)[0].SOPClassUID, uid) for uid in instances]
        missing = (good[0][0], "1.2.3.4")
        other = (SegmentationStorage, instances[0])  # is stored, and is of another class
        for references in (good, [*good, missing, other]):
            request = json.dumps({"transaction": "1.2.840.1", "references": references})
            spool.do("INSERT INTO commitment(ae, request, due) VALUES('ARCHIVE', ?, 0)", request)
        report_commitments(spool, config)
        wait_for(lambda: len(archive.reports) == 2)
    (first, complete), (second, partly) = archive.reports
    assert (first, second) == (1, 2)
    assert [item.ReferencedSOPInstanceUID for item in complete.ReferencedSOPSequence] == instances
    assert "FailedSOPSequence" not in complete
    assert complete.RetrieveAETitle == config.ae
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in partly.FailedSOPSequence] == [
        ("1.2.3.4", 0x0112),
        (instances[0], 0x0119),
    ]
    assert [item.ReferencedSOPInstanceUID for item in partly.ReferencedSOPSequence] == instances
    assert spool.rows("SELECT * FROM commitment") == []
    assert STORAGE_COMMITMENT == "1.2.840.10008.1.20.1"


def test_no_storage_is_committed_of_what_the_disk_lost(tmp_path):
    with Archive() as archive:
        config = Config(tmp_path / "store", folder=(tmp_path,), commit=(f"ARCHIVE@127.0.0.1:{archive.port}",))
        spool, _, instances = filled(config)
        lost, cut, _ = (spool.path("instances", file) for file in spool.files("instance ORDER BY id"))
        lost.unlink()
        os.truncate(cut, 1000)
        references = [(ct_series(1)[0].SOPClassUID, uid) for uid in instances]
        request = json.dumps({"transaction": "1.2.840.1", "references": references})
        spool.do("INSERT INTO commitment(ae, request, due) VALUES('ARCHIVE', ?, 0)", request)
        report_commitments(spool, config)
        ((event, report),) = wait_for(lambda: archive.reports)
    assert event == 2
    failed = [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in report.FailedSOPSequence]
    assert failed == [(instances[0], 0x0112), (instances[1], 0x0112)]
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == instances[2:]
