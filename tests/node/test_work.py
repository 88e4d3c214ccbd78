"""How the worker takes what it finds in the spool; in this process."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import logging
import os
import re
import struct
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from nodes import ct_series, finish, results, store
from pydicom.encaps import encapsulate

import trtseg.io.dicom
import trtseg.report.captures
from trtseg.errors import ArgumentError
from trtseg.node.results import write_results
from trtseg.node.work import lower_nets
from trtseg.stream import THREAD


def test_a_localizer_gives_no_result_and_a_reason(worker):
    series = ct_series(4)
    for one in series:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    store(worker.spool, *series)
    ((state, reason),) = finish(worker)
    assert state == "failed"
    assert "localizer" in reason
    counted = dict(worker.spool.rows("SELECT name, value FROM counter"))
    assert (counted["series_failed"], counted.get("series_done", 0)) == (1, 0)
    assert counted["tail_seconds_count"] == 1
    assert series[0].SeriesInstanceUID not in reason


def test_a_series_of_two_phases_gives_no_result_and_says_what_to_do_outside_the_node(worker):
    series = ct_series(4), ct_series(4, seed=1)
    for number, phase in enumerate(series, 1):
        for one in phase:
            one.StudyInstanceUID, one.SeriesInstanceUID = (
                series[0][0].StudyInstanceUID,
                series[0][0].SeriesInstanceUID,
            )
            one.FrameOfReferenceUID, one.AcquisitionNumber = series[0][0].FrameOfReferenceUID, number
    store(worker.spool, *series[0], *series[1])
    ((state, reason),) = finish(worker)
    assert state == "failed"
    assert "holds 2 volumes in one series" in reason
    assert "choose with trtseg segment --series (series= in Python)" in reason


def test_a_reason_is_found_for_headers_with_a_damaged_element(worker):
    series = ct_series(4)
    for one in series:
        one.ImageType, one.CTDIvol = ["ORIGINAL", "PRIMARY", "LOCALIZER"], 7.0
    store(worker.spool, *series)
    whole = b"FD\x08\0" + struct.pack("<d", 7)
    for file in worker.spool.files("instance"):
        path = worker.spool.path("instances", file)
        data = path.read_bytes().replace(whole, b"FD\x06\0" + bytes(6))
        path.write_bytes(data)
        came = hashlib.sha256(data[144 + int.from_bytes(data[140:144], "little") :]).digest()
        worker.spool.do("UPDATE instance SET sha256=? WHERE file=?", came, file)
    ((state, reason),) = finish(worker)
    assert state == "failed"
    assert "localizer" in reason


@pytest.mark.parametrize("keyword", ["RescaleType", "PhotometricInterpretation"])
def test_a_value_of_a_header_that_is_no_ct_stays_out_of_the_log(worker, caplog, keyword):
    series = ct_series(2)
    for one in series:
        setattr(one, keyword, "SECRET^PATIENT")
    store(worker.spool, *series)
    with caplog.at_level(logging.WARNING):
        finish(worker)
    reasons = [one.facts["reason"] for one in caplog.records if one.getMessage() == "instance unreadable"]
    assert ["(hidden)" in text and "SECRET" not in text for text in reasons] == [True, True]


@pytest.mark.parametrize(("related", "warned"), [(None, True), (9, True), (8, False)])
def test_a_result_warns_of_instances_that_were_refused(worker, related, warned, monkeypatch, caplog):
    results = []
    monkeypatch.setattr(
        "trtseg.node.work.write_results", lambda *given: results.append(given[1]) or write_results(*given)
    )
    caplog.set_level(logging.INFO)
    worker.spool.do("UPDATE association SET ended=0, how='released', refused=3")
    store(worker.spool, *ct_series(8), related=related)
    assert finish(worker) == [("done", None)]
    texts = [one.text for one in results[0].warnings if one.code == "slices-refused"]
    assert [text[:52] for text in texts] == ["The node refused 3 instances that came with this CT;"] * warned
    (facts,) = [one.facts for one in caplog.records if one.getMessage() == "series done"]
    assert facts["refused"] == 3
    assert ("slices-refused" in facts["warnings"]) is warned


@pytest.mark.parametrize(
    ("related", "damaged", "how", "told"),
    [
        (None, 0, "released", []),
        (8, 0, "released", []),
        (10, 0, "released", ["Headers speak of 10 instances, of which 2 did not come;"]),
        (None, 0, "aborted", []),
        (10, 0, "broken off", ["Headers speak of 10 instances, of which 2 did not come;"]),
        (8, 2, "broken off", ["The node could not decode 2 instances of this CT;"]),
        (None, 0, "broken off", ["This CT was broken off while it came, and its sender did not go on;"]),
    ],
)
def test_a_report_warns_of_instances_that_did_not_come_or_cannot_be_decoded(
    worker, related, damaged, how, told
):
    worker.spool.do("UPDATE association SET ended=1, how=?", how)
    worker.config = dataclasses.replace(worker.config, results=("seg", "sr"))
    series = ct_series(8)
    for one in series[8 - damaged :]:
        one.PixelData = one.PixelData[:100]
    store(worker.spool, *series, related=related)
    assert finish(worker) == [("done", None)]
    report = results(worker)[1][1]
    texts = [
        item.TextValue for item in report.ContentSequence if "slices-missing" in item.get("TextValue", "")
    ]
    assert [text.partition(";")[0].removeprefix("Warning: ") + ";" for text in texts] == told


def test_a_localizer_in_the_series_is_left_out(worker):
    series = ct_series(8)
    series[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    store(worker.spool, *series)
    assert finish(worker) == [("done", None)]


def test_what_ended_the_process_is_left_alone(worker, caplog):
    store(worker.spool, *ct_series(6))
    worker.spool.do("UPDATE instance SET crashes=2 WHERE id=1")
    with caplog.at_level(logging.INFO):
        assert finish(worker) == [("done", None)]
    (facts,) = (record.facts for record in caplog.records if record.getMessage() == "instance unreadable")
    assert facts["instance"] == 1
    store(worker.spool, *ct_series(6, seed=1))
    worker.spool.do("UPDATE series SET crashes=2 WHERE id=2")
    assert finish(worker)[1] == ("failed", "segmenting it has ended the process")


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.57"]
)
def test_a_compressed_picture_that_claims_to_be_huge_is_not_decoded(worker, syntax):
    series = ct_series(6)
    if syntax.endswith("90"):  # SIZ of a JPEG 2000 codestream: 100,000 x 100,000
        size = b"".join(n.to_bytes(4, "big") for n in (100_000, 100_000, 0, 0, 100_000, 100_000, 0, 0))
        data = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + size + b"\x00\x01\x0f\x01\x01\xff\xd9"
    else:  # start of a frame of 65,535 x 65,535
        start = b"\xff\xf7" if syntax.endswith("80") else b"\xff\xc3"
        data = b"\xff\xd8" + start + b"\x00\x0b\x10\xff\xff\xff\xff\x01\x01\x11\x00\xff\xd9"
    series[2].file_meta.TransferSyntaxUID = syntax
    series[2].PixelData = encapsulate([data])
    store(worker.spool, *series)
    before, start = _memory(), time.monotonic()
    ((state, reason),) = finish(worker)
    assert state == "failed"
    assert "1 slice is missing" in reason
    assert _memory() - before < 300_000_000
    assert time.monotonic() - start < 30
    assert worker.spool.row("SELECT value FROM counter WHERE name='instances_unreadable'")["value"] == 1


def _memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096


def test_a_full_disk_while_results_are_written_is_tried_again(worker, monkeypatch):
    store(worker.spool, *ct_series(6))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["trtseg.io.atomic"], "_flush", full)
    with pytest.raises(OSError, match="space"):
        finish(worker)
    monkeypatch.undo()
    assert finish(worker) == [("done", None)]


def test_what_takes_too_much_memory_is_tried_twice(worker, monkeypatch):
    store(worker.spool, *ct_series(6))

    def greedy(*_):
        raise MemoryError

    monkeypatch.setattr("trtseg.node.work.write_results", greedy)
    for _ in range(2):
        with pytest.raises(MemoryError):
            finish(worker)
    assert finish(worker) == [("failed", "segmenting it has ended the process")]


def test_an_instance_that_fails_in_no_known_way_is_tried_twice(worker, monkeypatch):
    series = ct_series(6)
    store(worker.spool, *series, *ct_series(6, seed=1))
    read = trtseg.io.dicom.read_slice

    def fails(file):
        header, hu = read(file)
        if header.SOPInstanceUID == series[0].SOPInstanceUID:
            raise OverflowError("a fault of ours")
        return header, hu

    monkeypatch.setattr("trtseg.io.dicom.read_slice", fails)
    for _ in range(2):
        with pytest.raises(OverflowError):
            finish(worker)
        worker.close()  # as the process that begins anew
    assert finish(worker) == [("done", None)] * 2
    assert worker.spool.row("SELECT value FROM counter WHERE name='instances_unreadable'")["value"] == 1


def test_a_series_does_not_end_by_what_was_known_before_another_was_ended(worker, monkeypatch):
    worker.config = dataclasses.replace(worker.config, quiet_s=0.5, long_quiet_s=0.5)
    first, second = ct_series(8), ct_series(8, seed=1)
    store(worker.spool, *first)
    store(worker.spool, *second[:4], related=8)
    worker.spool.do("UPDATE instance SET received=received-10 WHERE series=1")
    warned = []

    def slow(spool, result, *args):
        warned.append("slices-missing" in [one.code for one in result.warnings])
        if len(warned) == 1:
            time.sleep(0.6)
            store(spool, *second[4:], related=8)  # the others come while results of the first are made
        return write_results(spool, result, *args)

    monkeypatch.setattr("trtseg.node.work.write_results", slow)
    assert finish(worker) == [("done", None)] * 2
    assert warned == [False, False]


def test_more_series_than_streams_are_all_done(worker):
    worker.config = dataclasses.replace(worker.config, streams=1)
    for seed in range(3):
        store(worker.spool, *ct_series(4, seed=seed))
    assert finish(worker) == [("done", None)] * 3
    assert np.sum([row["bytes"] for row in worker.spool.rows("SELECT bytes FROM result")]) > 0


def test_no_more_is_decoded_while_the_nets_are_behind(worker, monkeypatch):
    class Nets:
        """A stream of which the test says how many slices are labelled."""

        labelled, pushed = 0, 0

        @property
        def counts(self):
            return self.pushed, self.labelled

        def push(self, hu, position):
            self.pushed += 1

        def close(self):
            pass

    nets = Nets()
    monkeypatch.setattr(worker.segmenter, "stream", lambda *_, **__: nets)
    store(worker.spool, *ct_series(64))
    while worker.step():
        pass
    assert nets.pushed == 56  # the eight that go over 48
    nets.labelled = 8
    assert worker.step()
    assert nets.pushed == 64


def test_a_ct_whose_slices_cannot_be_streamed_is_segmented_at_its_end(worker, monkeypatch):
    def refuses(*_, **__):
        raise ArgumentError("no stream of such slices")

    monkeypatch.setattr(worker.segmenter, "stream", refuses)
    store(worker.spool, *ct_series(8))
    assert finish(worker) == [("done", None)]


def test_a_slice_that_comes_after_the_end_opens_its_series_again(worker):
    *series, late = ct_series(8)
    store(worker.spool, *series)
    assert finish(worker) == [("done", None)]
    worker.spool.do("UPDATE series SET crashes=1")
    store(worker.spool, late)
    assert tuple(worker.spool.row("SELECT state, crashes FROM series")) == ("open", 0)
    assert finish(worker) == [("done", None)]
    kinds, made = results(worker)
    assert kinds == ["seg", "seg"]
    assert [len(one.ReferencedSeriesSequence[0].ReferencedInstanceSequence) for one in made] == [7, 8]


def test_only_the_nets_of_streams_give_way():
    is_over, own = threading.Event(), os.getpriority(os.PRIO_PROCESS, 0)
    threads = [threading.Thread(target=is_over.wait, name=name) for name in (THREAD, "another")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):  # not lower and lower
            lower_nets()
        nice = [os.getpriority(os.PRIO_PROCESS, thread.native_id) for thread in threads]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert nice == [own + 5, own]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def fail_to_open(monkeypatch, path, number):
    """Let the open of a file fail with that error."""
    real = Path.open

    def fail(self, *args, **options):
        if self == path:
            raise OSError(number, os.strerror(number))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", fail)


@pytest.mark.parametrize("how", ["lost", "cut off", "changed", "unreadable"])
def test_a_file_that_the_disk_did_not_keep_is_no_part_of_a_ct_and_may_be_sent_again(
    worker, caplog, monkeypatch, how
):
    series = ct_series(8)
    store(worker.spool, *series)
    path = worker.spool.path("instances", *worker.spool.files("instance WHERE id=3"))
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    if how == "changed":
        data[half : half + 2048] = bytes(2048)
    path.unlink()
    if how == "unreadable":
        path.write_bytes(data)
        fail_to_open(monkeypatch, path, errno.EIO)
    elif how != "lost":
        path.write_bytes(data[:half] if how == "cut off" else data)
    ((state, reason),) = finish(worker)
    assert state == "failed"
    assert "1 slice is missing" in reason
    (unreadable,) = [one for one in caplog.records if one.message == "instance unreadable"]
    assert "was lost or has changed since it came; send it again" in unreadable.facts["reason"]
    store(worker.spool, *series)
    assert finish(worker) == [("done", None)]
    (seg,) = results(worker)[1]
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 8
    assert worker.spool.sweep("instances", "instance") == 0
    store(worker.spool, *series)
    assert worker.step() is False  # the very same, once more, is no late slice


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_a_file_that_cannot_be_read_just_now_is_waited_for(worker, caplog, monkeypatch, number):
    """Of a copy of a store that root has put back, no slice can be read until its owner is mended."""
    series = ct_series(8)
    store(worker.spool, *series)
    path = worker.spool.path("instances", *worker.spool.files("instance WHERE id=3"))
    with monkeypatch.context() as patch:
        fail_to_open(patch, path, number)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            finish(worker)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):  # refused, to be sent again
            store(worker.spool, series[2])
    worker.close()
    assert finish(worker) == [("done", None)]
    assert "instance unreadable" not in [one.message for one in caplog.records]
