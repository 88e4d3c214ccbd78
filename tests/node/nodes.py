"""Nodes for tests: series to send, a node in processes of its own, a DICOM server that takes its results, a spool."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_made import instance
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from trtseg.node.forward import send_waiting
from trtseg.node.line import Line, keep_answers
from trtseg.node.spool import Facts, Made, Spool
from trtseg.phantom import abdomen

PERSONAL = ("SECRET^PATIENT", "SECRET", "PATIENT", "ID-4711-X", "19570313", "20260102", "Ward of Doctor Who")
SPACING = (20.0, 6.0, 6.0)


def ct_series(slices: int = 8, seed: int = 0) -> list[Dataset]:
    """A CT of the phantom, 64 x 64, a data set for each slice, feet to head."""
    made = abdomen((slices, 64, 64), (160.0 / slices, *SPACING[1:]), seed=seed)
    # Without noise, so that the tiny model finds the lesions of the phantom and no others.
    ct = np.select([made.labels == 2, made.labels == 1], [75, 110], np.minimum(made.ct, 40)).astype(np.int16)
    uids = {f"{of}UID": generate_uid() for of in ("StudyInstance", "SeriesInstance", "FrameOfReference")}
    return [_slice(plane, z * 160.0 / slices, z, uids) for z, plane in enumerate(ct)]


def _slice(plane, z, number, uids) -> Dataset:
    name, _, _, patient, birth, study, institution = PERSONAL
    ds = instance(
        plane, ImagePositionPatient=[-192, -192, z], PixelSpacing=list(SPACING[1:]), SliceThickness=5.0,
        PatientName=name, PatientID=patient, PatientBirthDate=birth, PatientSex="O", InstitutionName=institution,
        StudyDate=study, StudyTime="101112", StudyID="1", AccessionNumber="", ReferringPhysicianName="",
        SeriesNumber=3, InstanceNumber=number + 1, AcquisitionNumber=1, PositionReferenceIndicator="",
        Manufacturer="Nobody", KVP=120, **uids,
    )  # fmt: skip
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds: float = 30.0, every: float = 0.05):
    """What ``condition`` returns once it is true; an AssertionError if it never is."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(every)
    return value


def connect(port: int, ae: str = "CT1", called: str = "TRTSEG", contexts=None, **options):
    """An association with a node, for CT or the given SOP classes."""
    entity = AE(ae_title=ae)
    for context in contexts or [CTImageStorage, "1.2.840.10008.1.1"]:
        entity.add_requested_context(context, ExplicitVRLittleEndian)
    entity.acse_timeout = entity.network_timeout = 30
    entity.dimse_timeout = 10
    association = entity.associate("127.0.0.1", port, ae_title=called, **options)
    keep_answers(association)
    return association


def send(port: int, datasets, **options) -> list[int]:
    """Statuses of instances sent over one association."""
    association = connect(port, **options)
    assert association.is_established
    statuses = [association.send_c_store(dataset).get("Status", -1) for dataset in datasets]
    association.release()
    return statuses


class Node:
    """``trtseg serve`` in a process group of its own."""

    def __init__(self, store: Path, **given) -> None:
        self.store, self.port = store, free_port()
        self.log_file = store.with_name(store.name + ".log")
        settings = {"port": self.port, "threads": 1, "device": "cpu", "quiet_s": 0.3, "long_quiet_s": 2.0}
        settings |= {"free_mb": 1, **given}
        self.config = store.with_name(store.name + ".toml")
        self.config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        self.process = None

    def start(self) -> Node:
        begin = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trtseg", "serve", "--config", self.config, "--store", self.store],
                stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_for(lambda: '"listening"' in self.log_file.read_text()[begin:], 60)
        return self

    def kill(self) -> None:
        """End all its processes at once, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)

    def __enter__(self) -> Node:
        return self.start()

    def __exit__(self, *_) -> None:
        self.kill()

    @property
    def log(self) -> list[dict]:
        """Lines of the log so far."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.endswith("}")]

    def events(self, name: str) -> list[dict]:
        return [line for line in self.log if line["event"] == name]

    def ask(self, query: str) -> list[tuple]:
        """Rows of the node's database."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.store}/spool.sqlite?mode=ro", uri=True, timeout=30)
        ) as db:
            return db.execute(query).fetchall()


class Archive:
    """A DICOM server that keeps what it gets, and answers with `status`: the first object after ``hold`` is set."""

    def __init__(self, port: int | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.port, self.got, self.status = port or free_port(), [], 0x0000
        self.reports = []
        self.hold, self.held = None, False
        self._lock = threading.Lock()
        self.entity = AE(ae_title="ARCHIVE")
        for context in AllStoragePresentationContexts:
            self.entity.add_supported_context(context.abstract_syntax)
        self.entity.add_supported_context("1.2.840.10008.1.20.1", scu_role=False, scp_role=True)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_EVENT_REPORT, self._report)]
        self._server = self.entity.start_server(
            ("127.0.0.1", self.port), block=False, ssl_context=tls, evt_handlers=handlers
        )

    def _store(self, event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        with self._lock:
            waits = self.hold is not None and not self.held
            self.held |= waits
        if waits:
            self.hold.wait(30)
        with self._lock:
            if self.status == 0:
                self.got.append(dataset)
        return self.status

    def _report(self, event):
        self.reports.append((event.event_type, event.event_information))
        return 0x0000, None

    def of(self, modality: str) -> list[Dataset]:
        return [dataset for dataset in self.got if dataset.Modality == modality]

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()


def certificates(folder: Path, *names: str) -> None:
    """Make a certificate of 127.0.0.1, signed by itself, and its key, for each name: ``NAME.pem``, ``NAME.key``."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    for name in names:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip


def write_folder(datasets, folder: Path) -> Path:
    """The files of a series."""
    folder.mkdir(parents=True)
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{number:04d}", enforce_file_format=True)
    return folder


def filled(config, count=3):
    """A spool with one finished series and so many results of it."""
    spool = Spool(config.store)
    association = spool.do("INSERT INTO association(opened) VALUES(0)")
    series = ct_series(count)
    for one in series:
        facts = Facts(one.SOPInstanceUID, one.SOPClassUID, one.StudyInstanceUID, one.SeriesInstanceUID)
        spool.add(facts, association, (b"x", one.PixelData), (10, 10))
    made = []
    for one in ct_series(count):
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        path = config.store.parent / "one.dcm"
        one.save_as(path, enforce_file_format=True)
        file = spool.write("results", path.read_bytes())
        made.append(Made("sc", one.SOPClassUID, one.SOPInstanceUID, file))
    assert spool.begin_results(1, count)
    spool.add_results(1, made, config.destinations)
    assert spool.end(1, count)
    return spool, [one.sop for one in made], [one.SOPInstanceUID for one in series]


def states(spool):
    """Of all deliveries."""
    return [row["state"] for row in spool.rows("SELECT state FROM delivery ORDER BY result")]


def attempt(spool, config, destination=None):
    """Send what is due to a destination, the first if none is named, over a line of its own if it is a DICOM node."""
    destination = destination or config.destinations[0]
    kind, _, place = destination.partition(":")
    if kind != "send":
        return send_waiting(spool, config, destination)
    with contextlib.closing(Line(config, config.peers[place])) as line:
        return send_waiting(spool, config, destination, line)


def again(spool, config, destination=None):
    """What the next attempt does, without the wait for it."""
    spool.do("UPDATE delivery SET due=due-1e9")  # in their order
    attempt(spool, config, destination)


def store(spool, *datasets, related=None):
    """Put instances into a spool, as the receiver does."""
    for one in datasets:
        file = io.BytesIO()
        one.save_as(file, enforce_file_format=True)
        facts = Facts(
            one.SOPInstanceUID, one.SOPClassUID, one.StudyInstanceUID, one.SeriesInstanceUID, related
        )
        data = file.getvalue()
        head = 144 + int.from_bytes(data[140:144], "little")
        spool.add(facts, 1, (data[:head], data[head:]), (1000, 10))


def finish(worker):
    """Work until there is nothing to do; the states and reasons of all series."""
    while worker.step():
        pass
    return [tuple(row) for row in worker.spool.rows("SELECT state, reason FROM series ORDER BY id")]


def results(worker):
    """Kinds and headers of all results, in the order in which they are sent."""
    rows = worker.spool.rows("SELECT kind, file FROM result ORDER BY id")
    read = [pydicom.dcmread(worker.spool.path("results", row["file"])) for row in rows]
    return [row["kind"] for row in rows], read
