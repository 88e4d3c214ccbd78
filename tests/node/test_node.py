"""The whole node, in processes of its own: nothing that it acknowledged is lost, whatever happens."""

from __future__ import annotations

import os
import random
import signal
import time
import urllib.request

import highdicom as hd
import numpy as np
import pytest
from nodes import PERSONAL, Archive, Node, connect, ct_series, filled, free_port, send, wait_for, write_folder

import trtseg
from trtseg.node.config import Config


@pytest.fixture
def archive():
    with Archive() as archive:
        yield archive


@pytest.fixture
def node(tmp_path, model, archive):
    """A node that sends SEGs to the archive, started by the test."""
    node = Node(tmp_path / "store", model=model, send=[f"ARCHIVE@127.0.0.1:{archive.port}"], results=["seg"])
    yield node
    node.kill()


def labels_of(seg, datasets):
    """Labels of a SEG, uint8 ``[slice, row, column]`` in the order of the data sets: 1 liver, 2 lesion."""
    import io

    file = io.BytesIO()
    seg.save_as(file, enforce_file_format=True)
    read = hd.seg.segread(io.BytesIO(file.getvalue()))
    out = np.zeros((len(datasets), *datasets[0].pixel_array.shape), np.uint8)
    uids = [one.SOPInstanceUID for one in datasets]
    frames = read.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    for number in read.segment_numbers:
        name = read.get_segment_description(number).SegmentLabel.lower()
        out[frames[..., number - 1] > 0] = np.maximum(out, 1 if "liver" in name else 2)[
            frames[..., number - 1] > 0
        ]
    return out


def expected(datasets, folder, model):
    """Labels of the same files by `trtseg.segment`, in the order of the data sets."""
    result = trtseg.segment(write_folder(datasets, folder), model=model, device="cpu", threads=1)
    index = result.geometry.source.index
    order = np.argsort([int(path.name) for path in result.geometry.source.files])
    return result.labels.T[np.array(index)[order]]


def test_series_over_several_associations_and_what_disturbs_them(tmp_path, model, archive, node):
    """Shuffled and interleaved, with an aborted sender, a damaged instance, an unknown caller and a late slice."""
    node.config.write_text(
        node.config.read_text() + f'allow = ["CT1"]\nhttp_port = {(http := free_port())}\n'
    )
    node.start()
    one, two = ct_series(8, seed=1), ct_series(8, seed=2)
    late = one.pop()
    damaged = ct_series(8, seed=3)
    damaged[4].PixelData = damaged[4].PixelData[:100]
    everything = [*one, *two, *damaged]
    random.Random(0).shuffle(everything)
    assert not connect(node.port, ae="EVIL").is_established
    broken = connect(node.port)
    assert broken.send_c_store(everything[0]).Status == 0
    broken.abort()
    for part in range(3):
        assert set(send(node.port, everything[part::3])) == {0}
    wait_for(lambda: len(node.events("series done")) + len(node.events("series failed")) == 3, 90)
    assert [event["instances"] for event in node.events("series done")].count(8) == 1
    (unreadable,) = node.events("instance unreadable")
    assert unreadable["reason"]
    assert send(node.port, [late, one[0]]) == [0, 0]  # and one that was there before
    wait_for(
        lambda: any(e["instances"] == 8 and e["series"] != 0 for e in node.events("series done")[2:]), 60
    )
    wait_for(lambda: len(archive.of("SEG")) >= 3, 30)
    segs = {seg.ReferencedSeriesSequence[0].SeriesInstanceUID: seg for seg in archive.of("SEG")}
    for number, series in enumerate(([*one, late], two)):
        seg = segs[series[0].SeriesInstanceUID]  # the last of them: a revision comes later
        found, right = labels_of(seg, series), expected(series, tmp_path / str(number), model)
        assert (right == 2).any()
        assert np.array_equal(found > 0, right > 0)
    first, second = (
        s
        for s in archive.of("SEG")
        if s.ReferencedSeriesSequence[0].SeriesInstanceUID == late.SeriesInstanceUID
    )
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics") as answer:
        text = answer.read().decode()
    assert "trtseg_node_instances_stored_total 24.0" in text
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/health") as answer:
        assert answer.status == 200
    assert node.stop() == 0
    names = [name for _, folders, files in os.walk(node.store) for name in (*folders, *files)]
    for said in (node.log_file.read_text(), text, " ".join(names)):
        assert not [word for word in (*PERSONAL, late.StudyInstanceUID, late.SOPInstanceUID) if word in said]


def send_through_kills(node, datasets, kills, seed=0):
    """Send until everything is acknowledged, while the node is killed at random moments and started again."""
    rng = random.Random(seed)
    left, acknowledged = list(datasets), []
    moments = sorted(rng.uniform(0, len(datasets)) for _ in range(kills))
    while left:
        association = connect(node.port)
        if not association.is_established:
            time.sleep(0.1)
            continue
        while left and association.is_established:
            if moments and len(acknowledged) >= moments[0]:
                moments.pop(0)
                # In the middle of the next C-STORE, now and then before or after it.
                killer = signal_later(node, rng.uniform(0, 0.02))
                status = association.send_c_store(left[0]).get("Status")
                killer.join()
                if status == 0:
                    acknowledged.append(left.pop(0))
                node.kill()
                check_acknowledged(node, acknowledged)
                node.start()
                break
            status = association.send_c_store(left[0]).get("Status")
            if status is None:
                break
            assert status == 0
            acknowledged.append(left.pop(0))
        if association.is_established:
            association.release()
    return acknowledged


def signal_later(node, seconds):
    import threading

    def fire():
        time.sleep(seconds)
        os.killpg(node.process.pid, signal.SIGKILL)

    thread = threading.Thread(target=fire)
    thread.start()
    return thread


def check_acknowledged(node, datasets):
    """Each instance that was acknowledged has its row, and its file is complete."""
    import pydicom

    rows = dict(node.ask("SELECT sop, file FROM instance"))
    for dataset in datasets:
        kept = pydicom.dcmread(node.store / "instances" / rows[dataset.SOPInstanceUID])
        assert kept.PixelData == dataset.PixelData


def check_killed_node(node, archive, datasets, folder, model):
    """There is exactly one SEG of the complete series, and it is right."""
    wait_for(lambda: node.ask("SELECT 1 FROM series WHERE state='done'"), 120)
    wait_for(lambda: not node.ask("SELECT 1 FROM delivery WHERE state='waiting'"), 60)
    right = expected(datasets, folder, model) > 0
    segs = {seg.SOPInstanceUID: labels_of(seg, datasets) > 0 for seg in archive.of("SEG")}
    assert sum(np.array_equal(found, right) for found in segs.values()) == 1
    node.kill()
    before, ready = len(archive.got), len(node.events("ready"))
    node.start()
    wait_for(lambda: len(node.events("ready")) > ready, 60)
    time.sleep(0.5)
    assert len(archive.got) == before  # a finished series is not sent again


def test_kills_lose_nothing(tmp_path, model, archive, node):
    node.start()
    series = ct_series(12, seed=5)
    random.Random(1).shuffle(series)
    assert len(send_through_kills(node, series, kills=2)) == 12
    check_killed_node(node, archive, series, tmp_path / "ct", model)


def test_a_process_that_dies_is_started_again(node, archive):
    node.start()
    for name in ("receive", "forward", "work"):
        (event,) = [event for event in node.events("started") if event["process"] == name]
        os.kill(event["pid"], signal.SIGKILL)
    wait_for(lambda: len(node.events("process ended")) == 3, 20)
    wait_for(lambda: len(node.events("listening")) == 2, 30)
    assert send(node.port, ct_series(6)) == [0] * 6
    wait_for(lambda: archive.of("SEG"), 60)
    os.kill(node.process.pid, signal.SIGKILL)  # the others do not outlive the node
    wait_for(lambda: not connect(node.port).is_established, 10)


def test_folders_that_cannot_be_written_to_are_named_at_the_start(tmp_path, model):
    there, missing, file = tmp_path / "there", tmp_path / "missing", tmp_path / "file"
    there.mkdir()
    file.write_text("")
    folders = [str(path) for path in (there, missing, file)]
    with Node(tmp_path / "store", model=model, folder=folders, results=["seg"]) as node:
        event = "folder cannot be written to, results will wait"
        wait_for(lambda: len(node.events(event)) > 1)
        said = node.events(event)
    assert [line["folder"] for line in said] == [str(missing), str(file)]


def test_a_destination_that_is_down_is_a_warning_and_no_error(tmp_path, model):
    send_to = [f"DOWN@127.0.0.1:{free_port()}"]
    with Node(tmp_path / "store", model=model, send=send_to, results=["seg"], retry_s=0.1) as node:
        assert send(node.port, ct_series(8)) == [0] * 8
        wait_for(lambda: len(node.events("destination not reached")) > 2)
        said = [line for line in node.log if line["process"] == "forward"]
    assert {(line["event"], line["level"]) for line in said} == {
        ("started", "info"),
        ("destination not reached", "warning"),
    }
    assert {line.get("to", send_to[0]) for line in said} == set(send_to)


def test_a_destination_that_was_taken_out_of_the_settings_is_named_at_the_start(tmp_path, model):
    (tmp_path / "out").mkdir()
    former = [f"FORMER@127.0.0.1:{free_port()}"], [f"http://node:secret@127.0.0.1:{free_port()}/dicom-web"]
    filled(Config(tmp_path / "store", send=tuple(former[0]), stow=tuple(former[1])))
    with Node(tmp_path / "store", model=model, folder=[str(tmp_path / "out")]) as node:
        (said,) = node.events("results wait for a destination not in the settings")
    assert said["results"] == 6
    assert said["to"] == [former[0][0], former[1][0].replace("node:secret@", "")]


def test_a_folder_that_does_not_answer_keeps_no_node_from_starting(tmp_path, model, monkeypatch):
    """As one of a file server that is away, on which every call waits."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\naccess = os.access\n"
        "os.access = lambda path, *a, **k: time.sleep(300) if 'away' in str(path) else access(path, *a, **k)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    settings = {"model": model, "folder": [str(tmp_path / "away")], "results": ["seg"]}
    with Node(tmp_path / "store", **settings) as node:
        assert connect(node.port).is_established
        assert node.stop() == 0
