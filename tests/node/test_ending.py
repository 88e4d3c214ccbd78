"""When a series is complete, and what a restart finds."""

from __future__ import annotations

import gc
import re
import sqlite3
import time
import tracemalloc

import pytest
from nodes import filled, states

from trtseg.errors import OutputError
from trtseg.node.config import Config
from trtseg.node.ending import Evidence, due, look
from trtseg.node.log import scrub, where
from trtseg.node.purge import purge
from trtseg.node.run import _purge
from trtseg.node.spool import Facts, Refused, Spool

KNOWN = Evidence(instances=10, related=None, acquisitions_full=False, open=False, clean=True, last=100.0)


@pytest.mark.parametrize(
    ("evidence", "ends"),
    [
        ({}, 103),  # released, and a short silence
        ({"open": True}, 130),
        ({"clean": False}, 130),  # aborted: its sender will try again
        ({"related": 10, "open": True}, 100),  # the sender's own count
        ({"related": 11}, 130),
        ({"acquisitions_full": True}, 100),
        ({"acquisitions_full": True, "open": True}, 103),  # another acquisition may follow
        ({"acquisitions_full": True, "clean": False}, 103),  # as after an abort
    ],
)
def test_evidence_decides_how_long_is_waited(evidence, ends):
    assert due(Evidence(**{**KNOWN.__dict__, **evidence}), 3, 30) == ends


def add(spool, sop, series="1.1", association=1, limits=(100, 100), **facts):
    return spool.add(Facts(sop, "ct", "1", series, **facts), association, (b"head", sop.encode()), limits)


def associations(spool, count):
    for _ in range(count):
        spool.do("INSERT INTO association(opened) VALUES(0)")


def test_what_the_instances_say(tmp_path):
    spool = Spool(tmp_path)
    associations(spool, 2)
    for number in range(4):
        add(spool, f"a{number}", acquisition="1" if number < 2 else "2", in_acquisition=2)
    assert look(spool)[1].acquisitions_full
    add(spool, "a4", acquisition="2", in_acquisition=2, association=2)
    found = look(spool)[1]
    assert (found.acquisitions_full, found.instances, found.open, found.clean) == (False, 5, True, True)
    spool.do("UPDATE association SET ended=1e12, how='released' WHERE id=2")
    assert look(spool)[1].open  # the first
    assert look(spool)[1].last == 1e12
    add(
        spool, "b0", series="1.2", related=7
    )  # by which the first association has gone over to another series
    assert not look(spool)[1].open
    assert look(spool)[2].related == 7
    spool.do("UPDATE association SET ended=1, how='aborted' WHERE id=1")
    assert not look(spool)[1].clean
    spool.do("UPDATE association SET how='released' WHERE id=1")
    assert look(spool)[1].clean
    spool.do("UPDATE association SET refused=id")
    assert (look(spool)[1].clean, look(spool)[1].refused) == (False, 3)
    assert (look(spool)[2].clean, look(spool)[2].refused) == (False, 1)


@pytest.mark.parametrize("how", ["broken off", "lost"])
def test_a_sender_that_breaks_off_and_does_not_come_back(tmp_path, how):
    spool = Spool(tmp_path)
    associations(spool, 3)  # the first two side by side
    spool.do("UPDATE association SET opened=100 WHERE id=3")
    add(spool, "a0", association=1)
    add(spool, "a1", association=2)
    spool.do("UPDATE association SET ended=80, how='released' WHERE id=1")
    assert not look(spool)[1].broken_off
    spool.do("UPDATE association SET ended=90, how=? WHERE id=2", how)
    assert look(spool)[1].broken_off
    add(spool, "c0", series="1.3", association=2)  # it had gone over to another series
    assert (look(spool)[1].broken_off, look(spool)[2].broken_off) == (False, True)
    add(spool, "a01", association=2)  # and back
    assert look(spool)[1].broken_off
    add(spool, "b0", series="1.2", association=3)
    assert look(spool)[1].broken_off
    add(spool, "a2", association=3)
    assert not look(spool)[1].broken_off
    spool.do("UPDATE association SET ended=110, how=? WHERE id=3", how)
    assert look(spool)[1].broken_off
    spool.do("UPDATE association SET how='released' WHERE id=3")
    assert not look(spool)[1].broken_off


def test_a_number_that_is_exceeded_says_nothing(tmp_path):
    """Else each further instance would give a result of its own."""
    spool = Spool(tmp_path)
    associations(spool, 1)
    found = []
    for number in range(3):
        add(spool, f"a{number}", related=2)
        found.append((look(spool)[1].related, look(spool)[1].is_complete))
    assert found == [(2, False), (2, True), (None, False)]


def test_the_largest_number_that_was_said_counts(tmp_path):
    spool = Spool(tmp_path)
    associations(spool, 2)
    add(spool, "a0", acquisition="1")
    assert look(spool)[1].related is None
    add(spool, "a1", acquisition="2", related=3)
    add(spool, "a2", acquisition="3", related=5, association=2)
    assert look(spool)[1].related == 5


@pytest.mark.parametrize(
    ("instances", "related", "complete"), [(9, 10, False), (10, 10, True), (9, None, False)]
)
def test_only_a_number_says_that_a_series_is_complete(instances, related, complete):
    evidence = Evidence(**{**KNOWN.__dict__, "instances": instances, "related": related})
    assert evidence.is_complete is complete


def test_a_late_slice_opens_its_series_again(tmp_path):
    spool = Spool(tmp_path)
    associations(spool, 1)
    add(spool, "a0")
    assert spool.end(1, 1, "too few")
    assert look(spool) == {}
    assert not add(spool, "a0")  # the same again changes nothing
    assert look(spool) == {}
    add(spool, "a1")
    assert look(spool)[1].instances == 2
    assert not spool.begin_results(1, 1)  # made without the second
    assert not spool.end(1, 1)
    assert look(spool)[1].is_over is False
    assert spool.end(1, 2)


def test_instances_of_finished_series_cost_no_look(tmp_path):
    spool = Spool(tmp_path)
    associations(spool, 1)
    add(spool, "a0")
    assert spool.end(1, 1)
    add(spool, "b0", series="1.2")
    with spool.transaction():
        for number in range(2000):
            spool.do("INSERT INTO instance(series, association, sop) VALUES(1, 1, ?)", f"a0.{number}")
    steps: list[int] = []
    spool._db.set_progress_handler(lambda: steps.append(1), 1000)  # instructions of SQLite
    assert look(spool)[2].instances == 1
    assert len(steps) < 2


def test_what_was_refused_is_known_as_long_as_its_association_or_its_series(tmp_path):
    """However soon finished series are removed."""
    spool = Spool(tmp_path)
    associations(spool, 2)
    add(spool, "a0")
    add(spool, "b0", series="1.2")
    for association, sop in ((1, "a1"), (2, "a2")):  # of series 1; the second association brings nothing else
        spool.do("UPDATE association SET refused=1 WHERE id=?", association)
        spool.do("INSERT INTO refusal VALUES(?, '1/1.1', ?, 0)", association, sop)
    spool.do("UPDATE association SET ended=1, how='released' WHERE id=2")
    for refused in (2, 1):
        purge(spool, 0, 0)
        found = look(spool)
        assert (found[1].refused, found[2].refused, found[2].clean) == (refused, 0, True)
        add(spool, "a1")
    for series, last in ((1, 3), (2, 2)):
        assert spool.end(series, last)
    spool.do("UPDATE series SET ended=1")
    spool.do("UPDATE association SET ended=1, how='released'")
    purge(spool, 0, 0)
    assert [spool.rows(f"SELECT * FROM {table}") for table in ("series", "association", "refusal")] == [
        []
    ] * 3


def test_nothing_waits_longer_since_the_clock_was_set_back(tmp_path):
    config = Config(tmp_path / "store", folder=(tmp_path,), commit=("CT1@127.0.0.1:9",))
    spool, _, _ = filled(config)
    add(spool, "a0")
    spool.do("INSERT INTO refusal VALUES(1, '1/1.1', 'a1', 0)")
    for ae in ("CT1", "CT2"):
        spool.do("INSERT INTO commitment(ae, request, due) VALUES(?, '{}', 0)", ae)
    spool.do("UPDATE association SET ended=0, how='released'")
    ahead, soon = time.time() + 86_400, time.time() + config.retry_most_s
    columns = {
        "association": ("opened", "ended"), "instance": ("received",), "series": ("ended",), "result": ("made",),
        "refusal": ("at",), "delivery": ("due",), "commitment": ("due",),
    }  # fmt: skip
    for table, names in columns.items():
        for name in names:
            spool.do(f"UPDATE {table} SET {name}=?", ahead)
    again = {"delivery": "result=1", "commitment": "ae='CT2'"}  # after attempts that failed
    for table, which in again.items():
        spool.do(f"UPDATE {table} SET due=? WHERE {which}", soon)
    _purge(spool, config)
    now = time.time()
    for table, names in columns.items():
        for name in names:
            rest = f" WHERE NOT {again[table]}" if table in again else ""
            assert 0 <= now - spool.row(f"SELECT MAX({name}) FROM {table}{rest}")[0] < 60, (table, name)
    for table, which in again.items():
        assert spool.row(f"SELECT due FROM {table} WHERE {which}")[0] == soon
    assert len(states(spool)) == 3  # nothing that is kept went away


def test_a_series_with_a_part_of_its_results_is_unfinished(tmp_path):
    spool = Spool(tmp_path)
    associations(spool, 1)
    add(spool, "a0", limits=(100, 1))
    assert spool.begin_results(1, 1)
    with pytest.raises(Refused, match="too many series are unfinished"):
        add(spool, "b0", series="1.2", limits=(100, 1))
    assert add(spool, "a1", limits=(100, 1))  # a late slice of that series itself
    assert spool.end(1, 2)
    assert add(spool, "b0", series="1.2", limits=(100, 1))


def test_what_was_not_acknowledged_is_swept_away(tmp_path, caplog):
    spool = Spool(tmp_path)
    associations(spool, 1)
    add(spool, "a0")
    spool.write("instances", b"killed before its row")
    (tmp_path / "instances" / ".half.dcm").write_bytes(b"killed while written")
    assert spool.sweep("instances", "instance") == 2
    (removed,) = [one.facts for one in caplog.records if one.message == "files without a row removed"]
    assert removed == {"folder": "instances", "files": 2}
    assert spool.sweep("instances", "instance") == 0
    assert len(caplog.records) == 1
    assert [path.read_bytes() for path in (tmp_path / "instances").iterdir()] == [b"heada0"]


@pytest.mark.parametrize("lost", ["missing", "empty", "without its write-ahead log"])
@pytest.mark.parametrize("folder", ["instances", "results"])
def test_a_store_whose_database_is_lost_is_refused_and_nothing_in_it_removed(tmp_path, lost, folder):
    spool = Spool(tmp_path)
    spool.write(folder, b"acknowledged")
    index, log = tmp_path / "spool.sqlite", tmp_path / "spool.sqlite-wal"
    kept, logged = index.read_bytes(), log.read_bytes()  # as a kill leaves them
    assert 0 < len(kept) < len(logged)  # all tables of a young store are in the log
    spool.close()
    if lost == "without its write-ahead log":
        index.write_bytes(kept)
    else:
        log.write_bytes(logged)
        index.unlink() if lost == "missing" else index.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(OutputError, match=r"spool\.sqlite, which says what they are, is lost or empty"):
            Spool(tmp_path)
    if lost != "without its write-ahead log":
        assert log.read_bytes() == logged
    gc.collect()  # closes what was refused
    index.write_bytes(kept)
    log.write_bytes(logged)
    spool = Spool(tmp_path)
    assert spool.rows("SELECT * FROM instance") == []
    spool.close()
    assert len(list((tmp_path / folder).iterdir())) == 1


def test_an_instance_and_its_file_come_together_or_not_at_all(tmp_path, monkeypatch):
    spool = Spool(tmp_path)
    associations(spool, 1)

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(spool, "count", full)
        with pytest.raises(sqlite3.OperationalError):
            add(spool, "a0")
    assert list((tmp_path / "instances").iterdir()) == []
    assert spool.rows("SELECT * FROM instance") == []
    assert add(spool, "a0")
    with pytest.raises(Refused, match="another instance"):
        spool.add(Facts("a0", "ct", "1", "1.1"), 1, (b"head", b"other"), (100, 100))


def test_nothing_of_a_patient_is_left_in_a_reason():
    from nodes import PERSONAL, ct_series

    (header,) = ct_series(1)
    text = f"of {header.PatientName} {header.PatientID}, {header.StudyInstanceUID}, '{header.StudyTime}' of 512 mm"
    found = scrub(text + f" born {header.PatientBirthDate} in {header.InstitutionName}", [header])
    assert not [word for word in PERSONAL if word in found]
    assert header.StudyInstanceUID not in found
    assert found.endswith("(hidden)")
    assert "512 mm" in found
    own = f"{'1234567890abcdef' * 2}.dcm"
    assert scrub(f"/instances/{own}: of 1234567890 is cut off") == f"/instances/{own}: of (hidden) is cut off"


def test_an_error_of_the_database_is_named_by_its_kind(tmp_path):
    spool = Spool(tmp_path)
    (pages,) = spool.row("PRAGMA page_count")
    spool.row(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError) as full:
        spool.do("INSERT INTO refusal VALUES(1, ?, 'SECRET', 0)", "SECRET" * 10_000)
    assert re.fullmatch(r"OperationalError \(SQLITE_FULL\) at spool\.py:\d+", where(full.value))
    assert where(ValueError("SECRET")) == "ValueError"


@pytest.mark.parametrize("part", ["ab cd", "abc^"])
def test_a_long_text_of_a_header_takes_no_memory_for_a_reason_that_does_not_quote_it(part):
    """Of one of 100 MB, which a sender may send, patterns took 10 GB and minutes, and the node began again."""
    from nodes import ct_series

    (header,) = ct_series(1)
    header.TextValue = part * 400_000
    tracemalloc.start()
    try:
        assert scrub(f"a CT of {header.PatientName}", [header]) == "a CT of (hidden)^(hidden)"
        assert tracemalloc.get_traced_memory()[1] < 20_000_000  # bytes
    finally:
        tracemalloc.stop()
