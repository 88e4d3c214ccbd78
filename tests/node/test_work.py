"""How the worker takes what it finds in the spool; in this process."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import logging
import os
import struct
import sys
import threading
import time

import numpy as np
import pydicom
import pytest
from nodes import ct_series
from pydicom.encaps import encapsulate
from tiny import cascade_model

import trtseg.io.dicom
import trtseg.report.captures
from trtseg.api import Segmenter
from trtseg.node.config import Config
from trtseg.node.results import write_results
from trtseg.node.spool import Facts, Spool
from trtseg.node.work import Worker, lower_nets
from trtseg.stream import THREAD


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    with Segmenter(
        str(cascade_model(tmp_path_factory.mktemp("model"))), device="cpu", threads=1
    ) as segmenter:
        yield segmenter


@pytest.fixture
def worker(tmp_path, segmenter):
    config = Config(tmp_path / "store", folder=(tmp_path,), results=("seg",), quiet_s=0, long_quiet_s=0)
    worker = Worker(config, Spool(config.store), segmenter, ctypes.c_longlong())
    worker.spool.do("INSERT INTO association(opened) VALUES(0)")
    yield worker
    worker.close()


def store(spool, *datasets, related=None):
    import io

    for one in datasets:
        file = io.BytesIO()
        one.save_as(file, enforce_file_format=True)
        facts = Facts(
            one.SOPInstanceUID, one.SOPClassUID, one.StudyInstanceUID, one.SeriesInstanceUID, related
        )
        spool.add(facts, 1, (b"", file.getvalue()), (1000, 10))


def finish(worker):
    """Work until there is nothing to do; the states and reasons of all series."""
    while worker.step():
        pass
    return [tuple(row) for row in worker.spool.rows("SELECT state, reason FROM series ORDER BY id")]


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
        path.write_bytes(path.read_bytes().replace(whole, b"FD\x06\0" + bytes(6)))
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
        (10, 0, "aborted", ["Headers speak of 10 instances, of which 2 did not come;"]),
        (8, 2, "aborted", ["The node could not decode 2 instances of this CT;"]),
        (None, 0, "aborted", ["This CT was broken off while it came, and its sender did not go on;"]),
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


@pytest.fixture
def drawing(worker, monkeypatch):
    """A worker that makes all results, two pictures at a time, and ends after so many parts when it is told to."""
    worker.config = dataclasses.replace(worker.config, results=("seg", "sr", "sc"))
    monkeypatch.setattr("trtseg.node.results._TOGETHER", 2)
    monkeypatch.setattr("trtseg.node.results._FIRST", 1)

    def end_after(parts):
        def some(*args):
            for number, part in enumerate(write_results(*args)):
                if number == parts:
                    raise OSError("killed")
                yield part

        monkeypatch.setattr("trtseg.node.work.write_results", some)
        with pytest.raises(OSError, match="killed"):
            finish(worker)
        monkeypatch.setattr("trtseg.node.work.write_results", write_results)
        worker.close()  # as at the start of a new process
        worker.spool.sweep("results", "result")

    worker.end_after = end_after
    return worker


def results(worker):
    """Kinds and headers of all results, in the order in which they are sent."""
    rows = worker.spool.rows("SELECT kind, file FROM result ORDER BY id")
    read = [pydicom.dcmread(worker.spool.path("results", row["file"])) for row in rows]
    return [row["kind"] for row in rows], read


@pytest.mark.parametrize("parts", [0, 1, 2, 3, 4])
def test_a_restart_between_results_goes_on_with_those_that_are_missing(drawing, parts):
    store(drawing.spool, *ct_series(16))
    drawing.end_after(parts)
    kinds, before = results(drawing)
    assert kinds == ["seg", "sc", "sc", "sr", "sc", "sc"][: (0, 1, 3, 4, 6)[parts]]
    assert finish(drawing) == [("done", None)]
    kinds, after = results(drawing)
    (seg,), (report,), pictures = (
        [one for kind, one in zip(kinds, after, strict=True) if kind == wanted]
        for wanted in ("seg", "sr", "sc")
    )
    told = report.to_json()
    assert all(
        f'"{uid}"' in told for uid in (seg.SOPInstanceUID, *(one.TrackingUID for one in seg.SegmentSequence))
    )
    assert [one.SOPInstanceUID for one in after[: len(before)]] == [one.SOPInstanceUID for one in before]
    assert len({one.SeriesInstanceUID for one in pictures}) == 1
    assert [one.InstanceNumber for one in pictures] == list(range(1, len(pictures) + 1))
    heights = [float(one.ImageComments.split()[2].strip(",")) for one in pictures]
    assert heights == sorted(set(heights), reverse=True)
    assert len(pictures) > 4
    files = {path.name for path in (drawing.spool.folder / "results").iterdir()}
    assert files == {row["file"] for row in drawing.spool.rows("SELECT file FROM result")}
    counted = dict(drawing.spool.rows("SELECT name, value FROM counter"))
    assert (counted["series_done"], counted.get("series_failed", 0)) == (1, 0)


def fail_to_draw(monkeypatch):
    draw = trtseg.report.captures.draw_captures

    def three(*args):
        yield from itertools.islice(draw(*args), 3)
        raise OSError("a broken disk")

    monkeypatch.setattr("trtseg.report.captures.draw_captures", three)


def fail_to_note(monkeypatch):
    do = Spool.do

    def refuse(spool, statement, *values):
        if statement.startswith("INSERT INTO result") and "sc" in values:
            raise OSError("a broken disk")
        return do(spool, statement, *values)

    monkeypatch.setattr(Spool, "do", refuse)


@pytest.mark.parametrize(
    ("fail", "noted"), [(fail_to_draw, ["seg", "sc", "sc", "sr"]), (fail_to_note, ["seg"])]
)
def test_no_file_stays_of_results_that_were_not_noted(drawing, monkeypatch, fail, noted):
    store(drawing.spool, *ct_series(16))
    fail(monkeypatch)
    with pytest.raises(OSError, match="a broken disk"):
        finish(drawing)
    rows = drawing.spool.rows("SELECT kind, file FROM result ORDER BY id")
    assert [row["kind"] for row in rows] == noted
    assert {path.name for path in (drawing.spool.folder / "results").iterdir()} == {
        row["file"] for row in rows
    }


def test_pictures_alone_lie_in_one_series_after_a_restart(drawing):
    drawing.config = dataclasses.replace(drawing.config, results=("sc",))
    store(drawing.spool, *ct_series(16))
    drawing.end_after(2)
    assert finish(drawing) == [("done", None)]
    kinds, read = results(drawing)
    assert set(kinds) == {"sc"}
    assert len(kinds) > 4
    assert len({one.SeriesInstanceUID for one in read}) == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_a_late_slice_between_results_gives_all_of_them_anew(drawing, monkeypatch, parts):
    *series, late = ct_series(16)
    store(drawing.spool, *series)

    def with_late(*args):
        for number, part in enumerate(write_results(*args)):
            if number == parts:
                store(drawing.spool, late)
            yield part

    monkeypatch.setattr("trtseg.node.work.write_results", with_late)
    assert finish(drawing) == [("done", None)]
    kinds, read = results(drawing)
    assert kinds.count("seg") == kinds.count("sr") == 2
    assert len({one.SeriesInstanceUID for one in read}) == 6
    assert len(read[kinds.index("seg", 1)].ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 16


def test_pictures_of_another_model_are_not_added(drawing, monkeypatch):
    store(drawing.spool, *ct_series(16))
    drawing.end_after(3)
    monkeypatch.setattr("trtseg.api.Segmenter.fingerprint", lambda *_: "another")
    assert finish(drawing) == [("done", None)]
    kinds, read = results(drawing)
    assert kinds.count("seg") == 2
    assert [one.DeviceSerialNumber == "another" for one in read] == [False] * 4 + [True] * (len(read) - 4)
    numbers = [one.InstanceNumber for kind, one in zip(kinds[4:], read[4:], strict=True) if kind == "sc"]
    assert numbers == list(range(1, len(read) - 5))


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
