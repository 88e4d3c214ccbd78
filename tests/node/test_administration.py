"""What docs/node.md tells an administrator to ask and to do, as it stands there."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from nodes import ct_series, filled, finish, states, store

from trtseg.node.config import Config
from trtseg.node.metrics import Collector
from trtseg.node.purge import purge
from trtseg.node.work import Series

DOCS = (Path(__file__).parents[2] / "docs" / "node.md").read_text(encoding="utf-8")
OLD, NEW = "send:ORTHANC@10.0.0.7:4242", "send:ORTHANC@10.0.0.8:4242"
SQL = re.search(r"```sql\n(.*?)```", DOCS, re.DOTALL)[1]
STATEMENTS = dict(re.findall(r"-- (.*)\n((?:[^;-][^;]*);)", SQL))
(DROP,) = (title for title in STATEMENTS if title.startswith("drop a series"))


def run(spool, title, number=1):
    """Rows of the statement of that title, of the series of that id."""
    return [tuple(row) for row in spool.rows(re.sub(r"\b7\b(?=[ )]|;)", str(number), STATEMENTS[title]))]


@pytest.fixture
def spool(tmp_path):
    """Three results that wait for the old address."""
    return filled(Config(tmp_path / "store", send=(OLD.removeprefix("send:"),)))[0]


def test_what_waits_and_what_was_rejected_is_listed_and_sent_again(spool):
    spool.do("UPDATE delivery SET due=?, attempts=9, reason='no connection'", time.time() + 300)
    assert run(spool, "results that wait, by destination") == [(OLD, 3, 9, "no connection")]
    run(spool, "try what waits now")
    assert spool.row("SELECT MAX(due) FROM delivery")[0] == 0
    spool.bury(2, OLD, *spool.files("result WHERE id=2"), "status 0x0124")
    assert run(spool, "results that were rejected") == [(1, "sc", OLD, "status 0x0124")]
    run(spool, "send again what a destination rejected")
    assert states(spool) == ["waiting"] * 3
    assert run(spool, "results that were rejected") == []


def test_what_waits_goes_to_the_new_address(spool):
    spool.do("UPDATE delivery SET state='sent' WHERE result=1")
    spool.do("INSERT INTO delivery(result, destination, state) VALUES(2, ?, 'sent')", NEW)
    run(spool, "send what waits for a destination that has moved to its new address")
    found = spool.rows("SELECT result, destination, state FROM delivery ORDER BY result, destination")
    assert [tuple(row) for row in found] == [
        (1, OLD, "sent"),
        (2, OLD, "waiting"),  # the new address has it already
        (2, NEW, "sent"),
        (3, NEW, "waiting"),
    ]


def test_no_more_results_of_a_series_are_sent(spool):
    run(spool, "send no more results of a series", 2)
    assert states(spool) == ["waiting"] * 3
    run(spool, "send no more results of a series")
    assert states(spool) == ["dead"] * 3
    spool.do("UPDATE result SET made=0")
    spool.do("UPDATE series SET ended=0")
    purge(spool, 60, 60)
    assert spool.rows("SELECT * FROM delivery") == spool.rows("SELECT * FROM series") == []


def test_a_series_is_segmented_again(worker):
    series, short = ct_series(8), ct_series(3, seed=1)[::2]
    short[0].ImageType = short[1].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    store(worker.spool, *series)
    ((number, state, count, _),) = run(worker.spool, "series that are not finished")
    assert (number, state, count) == (1, "open", 8)
    assert finish(worker) == [("done", None)]
    store(worker.spool, *short)
    assert finish(worker)[1][0] == "failed"
    ((number, uid, reason, _),) = run(worker.spool, "series without a result, and why")
    assert (number, uid) == (2, f"{short[0].StudyInstanceUID}/{short[0].SeriesInstanceUID}")
    assert "localizer" in reason
    run(worker.spool, "segment a series again, and send new results")
    assert finish(worker)[0] == ("done", None)
    made = worker.spool.rows("SELECT revision FROM result WHERE series=1")
    assert [row["revision"] for row in made] == [1, 2]
    worker.spool.do("DELETE FROM instance")  # no longer kept: it would stay open for ever
    run(worker.spool, "segment a series again, and send new results")
    assert worker.spool.row("SELECT state FROM series WHERE id=1")[0] == "done"


def test_a_series_is_dropped_while_it_comes(worker):
    store(worker.spool, *ct_series(8))
    assert worker.step()  # has some of it
    run(worker.spool, DROP)
    assert finish(worker) == [("failed", "dropped")]
    assert purge(worker.spool, worker.config.keep_s, 60) == 8
    assert list((worker.config.store / "instances").iterdir()) == []
    assert worker.spool.rows("SELECT * FROM series") == []


@pytest.mark.parametrize("is_purged", [False, True])
def test_a_series_is_dropped_while_it_is_segmented(worker, monkeypatch, is_purged):
    finish_series = Series.finish

    def drop_meanwhile(self, warnings):
        result = finish_series(self, warnings)
        run(worker.spool, DROP)
        if is_purged:
            purge(worker.spool, worker.config.keep_s, 60)
        return result

    monkeypatch.setattr(Series, "finish", drop_meanwhile)
    store(worker.spool, *ct_series(8))
    assert finish(worker) == ([] if is_purged else [("failed", "dropped")])
    assert worker.spool.rows("SELECT * FROM result") == []


def test_a_series_is_dropped_between_its_results(worker, monkeypatch):
    add_results = worker.spool.add_results

    def drop_after(*given):
        add_results(*given)
        run(worker.spool, DROP)

    monkeypatch.setattr(worker.spool, "add_results", drop_after)
    store(worker.spool, *ct_series(8))
    assert finish(worker) == [("failed", "dropped")]
    assert purge(worker.spool, worker.config.keep_s, 60) == 8


def test_metrics_that_the_text_names_are_there(spool):
    named = set(re.findall(r"`(trtseg_node_\w+)`", DOCS))
    there = {sample.name for metric in Collector(spool).collect() for sample in metric.samples}
    assert len(named) >= 6
    assert named <= there
