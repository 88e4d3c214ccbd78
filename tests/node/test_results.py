"""Results of a series are written in parts, each once, whatever comes in between."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from nodes import ct_series, finish, results, store

import trtseg.report.captures
from trtseg.node.results import write_results
from trtseg.node.spool import Spool


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


@pytest.mark.parametrize("how", ["missing", "empty", "cut off", "zeroed", "unreadable"])
def test_a_result_whose_file_is_lost_between_results_stops_no_series(drawing, monkeypatch, how):
    store(drawing.spool, *ct_series(16))
    drawing.end_after(1)
    store(drawing.spool, *ct_series(16, seed=1))
    path = drawing.spool.path("results", *drawing.spool.files("result"))
    size = path.stat().st_size
    path.unlink()
    if how == "unreadable":  # found by `stat`, as on a bad sector
        monkeypatch.setattr("trtseg.node.results.is_lost", lambda *_: False)
    elif how != "missing":
        path.write_bytes(bytes({"empty": 0, "cut off": size // 2, "zeroed": size}[how]))
    assert finish(drawing) == [("done", None)] * 2
    path.unlink(missing_ok=True)
    drawing.spool.do("DELETE FROM result WHERE id=1")
    kinds, read = results(drawing)
    assert kinds.count("seg") == kinds.count("sr") == 2  # all of the first series are made anew
    assert len(read) == len(kinds)
