"""What takes minutes: many kills, a disk that is full, hours of CTs."""

from __future__ import annotations

import random
import subprocess
import threading

import pytest
from nodes import Archive, Node, connect, ct_series, send, wait_for
from test_node import check_killed_node, send_through_kills

pytestmark = pytest.mark.slow


def test_twenty_kills_lose_nothing(tmp_path, model):
    series = ct_series(129, seed=4)
    random.Random(4).shuffle(series)
    with Archive() as archive:
        send_to = [f"ARCHIVE@127.0.0.1:{archive.port}"]
        # So long that the series is not ended while the node starts again.
        node = Node(tmp_path / "store", model=model, send=send_to, results=["seg"], long_quiet_s=15.0)
        try:
            node.start()
            assert len(send_through_kills(node, series, kills=20, seed=7)) == 129
            check_killed_node(node, archive, series, tmp_path / "ct", model)
        finally:
            node.kill()


def test_a_full_disk(tmp_path, model):
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mount: not allowed")
    try:
        filler = tmp_path / "disk" / "filler"
        (tmp_path / "out").mkdir()
        settings = {"folder": [str(tmp_path / "out")], "results": ["seg"], "free_mb": 0}
        node = Node(tmp_path / "disk" / "store", model=model, **settings)
        node.log_file = tmp_path / "log"
        series = ct_series(40)
        with node:
            filler.write_bytes(bytes(2_600_000))
            statuses = send(node.port, series)
            assert 0xA700 in statuses
            assert set(statuses) <= {0, 0xA700}
            filler.unlink()
            refused = [one for one, status in zip(series, statuses, strict=True) if status]
            assert set(send(node.port, refused)) == {0}
            kept = {sop for (sop,) in node.ask("SELECT sop FROM instance")}
            assert kept == {one.SOPInstanceUID for one in series}
            wait_for(lambda: [e for e in node.events("series done") if e["instances"] == 40], 90)
            assert not node.events("process ended")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=False)


def test_hours_of_cts_leave_no_traces(tmp_path, model):
    """48 CTs over four associations side by side, each sent as fast as it is taken."""
    failures = []

    def sender(number, count):
        for turn in range(count):
            left = ct_series(40, seed=100 * number + turn)
            while left:  # pynetdicom's sender loses an answer now and then; as others do, it tries again
                association = connect(node.port, ae=f"CT{number}")
                while left and association.is_established:
                    status = association.send_c_store(left[0]).get("Status")
                    if status is None:
                        break
                    failures.extend([status] if status else [])
                    del left[0]
                association.release()

    def send_side_by_side(count):
        threads = [threading.Thread(target=sender, args=(n, count)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with Archive() as archive:
        settings = {"send": [f"ARCHIVE@127.0.0.1:{archive.port}"], "results": ["seg"], "keep_s": 5.0}
        settings["long_quiet_s"] = 20.0  # longer than a sender waits for a lost answer
        with Node(tmp_path / "store", model=model, **settings) as node:
            pids = {event["process"]: event["pid"] for event in node.events("started")}
            send_side_by_side(3)
            wait_for(lambda: len({event["series"] for event in node.events("series done")}) == 12, 300)
            before = {name: memory(pid) for name, pid in pids.items()}
            send_side_by_side(9)
            wait_for(lambda: len({event["series"] for event in node.events("series done")}) == 48, 600)
            wait_for(lambda: len({series_of(seg) for seg in archive.got}) == 48, 60)
            after = {name: memory(pid) for name, pid in pids.items()}
            assert failures == []
            assert not node.events("process ended")
            wait_for(lambda: not list((node.store / "instances").iterdir()), 60)
            wait_for(lambda: not list((node.store / "results").iterdir()), 60)
            assert node.ask("SELECT COUNT(*) FROM series") == [(0,)]
    for name, size in after.items():
        assert size < before[name] + 60e6, (name, before, after)


def series_of(seg):
    """The CT that a SEG belongs to."""
    return seg.ReferencedSeriesSequence[0].SeriesInstanceUID


def memory(pid):
    """Resident memory of a process, bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096
