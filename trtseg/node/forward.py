"""Results to where they are wanted, and reports of storage commitment: tried again until they arrive or are rejected.

What cannot be sent now stays in the spool. Only a destination that answered "never" to a result gets it into the
dead-letter folder. A result keeps its UIDs, so one that was sent just before a crash is the same object when it is sent
again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtseg.node.config import Config, Peer
from trtseg.node.files import flush_folder, is_lost
from trtseg.node.line import ANSWER_S, Later, Line, associate, why
from trtseg.node.log import say, shown, where
from trtseg.node.receive import STORAGE_COMMITMENT
from trtseg.node.spool import Spool
from trtseg.node.stopping import Stop

_TOGETHER = 100  # results that are sent in one go
_AFTER = 0.001  # seconds by which a result at which a destination fails is due after the others
_COMMITMENT_ATTEMPTS = 100  # which take hours, since waits grow
# Seconds until somebody without work looks for some, which is a question to the store each time.
_LOOK_S, _LOOK_FOR_COMMITMENTS_S = 0.05, 1.0
_LOST = "its file in the store is lost or cut off"
#: Sends the result in a file, of a SOP class; None, or why it was rejected. Later: it could not be sent.
Send = Callable[[Path, str], str | None]
_NO_SUCH_INSTANCE, _CLASS_INSTANCE_CONFLICT = 0x0112, 0x0119


def forward(config: Config) -> None:
    """Send until SIGTERM; the body of the forwarding process."""
    stop = Stop(signal.SIGTERM)
    from pynetdicom import _config

    _config.LOG_HANDLER_LEVEL = "none"
    # Errors of its own for each attempt that fails, of which no more than a line number may be said: `Later` says why.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    _config.STORE_SEND_CHUNKED_DATASET = True  # files are sent as they are, not read and encoded again
    spool = Spool(config.store)
    lock = spool.lock("forward")
    work: list[Callable[[], Any]] = []
    lines: list[Line] = []
    for destination in config.destinations:
        kind, _, peer = destination.partition(":")
        if kind != "send":
            work.append(functools.partial(send_waiting, spool, config, destination))
            continue
        first = Line(config, config.peers[peer])
        second = Line(config, config.peers[peer], first)
        lines += [first, second]
        work += [
            functools.partial(send_waiting, spool, config, destination, line) for line in (first, second)
        ]
    todo = [(each, _LOOK_S) for each in work]
    todo.append((functools.partial(report_commitments, spool, config), _LOOK_FOR_COMMITMENTS_S))
    loops = [threading.Thread(target=_loop, args=(*each, config, stop)) for each in todo]
    for loop in loops:
        loop.start()
    while not stop.wait(1.0):
        pass
    for loop in loops:
        loop.join(timeout=10)
    if not any(loop.is_alive() for loop in loops):
        for line in lines:
            line.close()
    lock.close()
    say("stopped")
    os._exit(0)  # a destination that does not answer keeps no process alive


def _loop(work: Callable[[], Any], pause: float, config: Config, stop: Stop) -> None:
    while not stop.is_set():
        done: Any = False
        try:
            done = work()
        except Exception as error:  # a full disk, for example: tried again
            say("sending failed", level=logging.ERROR, reason=where(error))
            stop.wait(config.retry_s)
        stop.wait(0 if done else pause)


def send_waiting(spool: Spool, config: Config, destination: str, line: Line | None = None) -> bool:
    """Send results that are due to one destination, a DICOM node over ``line``; tell if some got their answer."""
    waiting = spool.rows(
        "SELECT r.id, r.series, r.kind, r.sop_class, r.file, r.bytes, d.attempts"
        " FROM delivery d JOIN result r ON r.id=d.result"
        " WHERE d.state='waiting' AND d.destination=? AND d.due<=?"
        " ORDER BY d.attempts, CASE d.attempts WHEN 0 THEN 0 ELSE d.due END, r.kind='sc', r.id LIMIT ?",
        *(destination, time.time(), _TOGETHER),
    )
    if not waiting or (line is not None and not line.has_work):
        if line is not None:
            line.close_if_idle()
        return False
    kind, _, place = destination.partition(":")
    name, answered, begun = shown(destination), 0, None
    try:
        send: Send
        if line is not None:
            line.open()
            send = line.send
        else:
            send = _stow(place) if kind == "stow" else functools.partial(_copy, Path(place))
        for row in waiting:
            with contextlib.nullcontext(True) if line is None else line.taking(row["id"]) as is_free:
                if not is_free or not _is_waiting(spool, row["id"], destination):
                    continue  # the other line sends it, or has sent it in the meantime
                begun = row["id"]
                path = spool.path("results", row["file"])
                lost = is_lost(path, row["bytes"])  # and will be the next time
                _note(spool, row, destination, _LOST if lost else send(path, row["sop_class"]))
                answered += 1
    except Exception as error:
        reason = str(error) if isinstance(error, Later) else where(error)
        if line is not None:
            line.close()
            if line.first is not None:
                line.rest()
                say("second association given up", to=name, reason=reason)
                return False
        wait = _wait(config, max(row["attempts"] for row in waiting))
        say("destination not reached", level=logging.WARNING, to=name, reason=reason, again_in_s=wait)
        due = time.time() + wait
        with spool.transaction():
            for row in waiting:
                last = _AFTER if row["id"] == begun else 0.0  # what it failed at: it may do so for ever
                spool.do(
                    "UPDATE delivery SET attempts=attempts+1, due=?, reason=?"
                    " WHERE result=? AND destination=? AND state='waiting'",
                    *(due + last, reason, row["id"], destination),
                )
            spool.count("delivery_failures")
    return answered > 0


def _is_waiting(spool: Spool, result: int, destination: str) -> bool:
    query = "SELECT 1 FROM delivery WHERE result=? AND destination=? AND state='waiting'"
    return spool.row(query, result, destination) is not None


def _wait(config: Config, attempts: int) -> float:
    """Seconds until the next attempt after so many that failed."""
    return min(config.retry_s * 2.0 ** min(attempts, 20), config.retry_most_s)


def _note(spool: Spool, row: Any, destination: str, reason: str | None) -> None:
    """Note at once that a result was taken, or why it was rejected: whatever follows may fail."""
    if reason is not None:
        spool.bury(row["id"], destination, row["file"], reason)
        facts = {"series": row["series"], "kind": row["kind"], "to": shown(destination), "reason": reason}
        say("result rejected", level=logging.ERROR, **facts)
        return
    with spool.transaction():
        spool.do(
            "UPDATE delivery SET state='sent', ended=?, attempts=attempts+1 WHERE result=? AND destination=?",
            *(time.time(), row["id"], destination),
        )
        spool.count("results_sent")
    say("result sent", series=row["series"], kind=row["kind"], to=shown(destination))


def _stow(url: str) -> Send:
    """What sends results to a DICOMweb server by STOW-RS, one by one: one that is rejected stops no other."""
    import pydicom
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    session.hooks["response"].append(_strip_kind)
    client = DICOMwebClient(url, session=session, timeout=ANSWER_S)
    client.set_http_retry_params(retry=False)  # dicomweb_client 0.61 tries again without the body

    def send(path: Path, _: str) -> str | None:
        try:
            answer = client.store_instances([pydicom.dcmread(path)])
        except requests.HTTPError as error:
            code = 0 if error.response is None else error.response.status_code
            if code in (400, 409, 413, 415):
                return f"HTTP status {code}"
            raise Later(f"HTTP status {code}") from error
        except requests.RequestException as error:
            raise Later(f"no connection ({why(error)})") from error
        failed = answer.get("FailedSOPSequence")
        return f"failure reason 0x{failed[0].get('FailureReason', 0):04X}" if failed else None

    return send


def _strip_kind(answer: Any, **_: Any) -> None:
    """Take parameters off the media type of an answer: dicomweb_client 0.61 reads none that has some, or no type."""
    answer.headers["Content-Type"] = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _copy(folder: Path, path: Path, _: str) -> None:
    """Copy a result into a folder, under its random name."""
    try:
        temporary = folder / f".{path.name}"
        with temporary.open("wb") as file:
            file.write(path.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / path.name)
        flush_folder(folder)
    except OSError as error:
        raise Later(f"cannot be written: {error.strerror}") from error


def report_commitments(spool: Spool, config: Config) -> None:
    """Tell those who asked for storage commitment which instances are stored, each on an association of its own."""
    for row in spool.rows("SELECT * FROM commitment WHERE due<=? ORDER BY id LIMIT 10", time.time()):
        peer = config.commit_peers.get(row["ae"])
        if peer is None:
            _give_up(spool, row, "not listed in 'commit' any more")
            continue
        try:
            _report(spool, config, peer, json.loads(row["request"]))
        except Exception as error:
            wait = _wait(config, row["attempts"])
            reason = str(error) if isinstance(error, Later) else where(error)
            if row["attempts"] > _COMMITMENT_ATTEMPTS:
                _give_up(spool, row, reason)
                continue
            say("commitment not reported", level=logging.WARNING, to=peer.ae, reason=reason, again_in_s=wait)
            spool.do(
                "UPDATE commitment SET attempts=attempts+1, due=? WHERE id=?", time.time() + wait, row["id"]
            )
            continue
        spool.do("DELETE FROM commitment WHERE id=?", row["id"])
        say("commitment reported", to=peer.ae)


def _give_up(spool: Spool, row: Any, reason: str) -> None:
    spool.do("DELETE FROM commitment WHERE id=?", row["id"])
    say("commitment given up", level=logging.ERROR, to=row["ae"], reason=reason)


def _report(spool: Spool, config: Config, peer: Peer, request: dict[str, Any]) -> None:
    """N-EVENT-REPORT: event 1 if every instance is stored, else 2 with those that are not."""
    from pydicom import Dataset
    from pynetdicom import build_role

    stored, failed = [], []
    for sop_class, sop in request["references"]:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
        known = spool.row("SELECT sop_class, file, bytes FROM instance WHERE sop=?", sop)
        if known is not None and is_lost(spool.path("instances", known["file"]), known["bytes"]):
            known = None  # it is taken when it is sent again
        if known is not None and known["sop_class"] == sop_class:
            stored.append(item)
        else:
            item.FailureReason = _NO_SUCH_INSTANCE if known is None else _CLASS_INSTANCE_CONFLICT
            failed.append(item)
    report = Dataset()
    report.TransactionUID = request["transaction"]
    report.RetrieveAETitle = config.ae
    if stored:
        report.ReferencedSOPSequence = stored
    if failed:
        report.FailedSOPSequence = failed
    role = build_role(STORAGE_COMMITMENT, scp_role=True)
    association = associate(config, peer, [STORAGE_COMMITMENT], ext_neg=[role])
    try:
        status, _ = association.send_n_event_report(
            report, 2 if failed else 1, STORAGE_COMMITMENT, f"{STORAGE_COMMITMENT}.1"
        )
        if status.get("Status") != 0:
            raise Later(f"status {status.get('Status')}")
    finally:
        association.release()
