"""What a node no longer keeps, and times that the clock has left behind."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtseg.node.log import say, shown
from trtseg.node.spool import Spool

_ENDED = "SELECT id FROM series WHERE state NOT IN ('open', 'part') AND ended<?"
_SETTLED = (
    "made<? AND id NOT IN (SELECT result FROM delivery WHERE state='waiting')"
    " AND series NOT IN (SELECT id FROM series WHERE state='part')"
)


def waiting_elsewhere(spool: Spool, destinations: Sequence[str], before: float = math.inf) -> list[Any]:
    """List deliveries that wait for other destinations than these, of results that were made before that time."""
    rows = spool.rows(
        "SELECT d.result, d.destination FROM delivery d JOIN result r ON r.id=d.result"
        " WHERE d.state='waiting' AND r.made<?",
        before,
    )
    return [row for row in rows if row["destination"] not in destinations]


def give_up(spool: Spool, destinations: Sequence[str], keep_dead: float) -> None:
    """Give up results that have waited that many seconds for a destination that the settings do not name."""
    given_up = Counter[str]()
    with spool.transaction():  # one by one they would hold up the node
        for row in waiting_elsewhere(spool, destinations, time.time() - keep_dead):
            spool.do(
                "UPDATE delivery SET state='dead', reason='not in the settings', ended=?"
                " WHERE result=? AND destination=?",
                *(time.time(), row["result"], row["destination"]),
            )
            spool.count("results_dead")
            given_up[row["destination"]] += 1
    for destination, count in given_up.items():
        say("results given up", level=logging.ERROR, to=shown(destination), results=count)


def mend_times(spool: Spool, most: float) -> None:
    """Bring to now what lies in the future since the clock was set back: all waits would last as long as the jump.

    Deliveries and reports of storage commitment may be due in up to ``most`` seconds.
    """
    now = time.time()
    for table, column, until in (
        ("instance", "received", now), ("association", "opened", now), ("association", "ended", now),
        ("series", "ended", now), ("result", "made", now), ("refusal", "at", now),
        ("delivery", "due", now + most), ("commitment", "due", now + most),
    ):  # fmt: skip
        spool.do(f"UPDATE {table} SET {column}=? WHERE {column}>?", now, until)  # noqa: S608


def purge(spool: Spool, keep: float, keep_dead: float) -> int:
    """Remove what was finished, and what was rejected, longer ago than that many seconds; the number of files."""
    old = time.time() - keep
    # Rows first: a file without a row is swept, a row without a file would be an error.
    with spool.transaction():
        instances = spool.files(f"instance WHERE series IN ({_ENDED})", old)
        results = spool.files(f"result WHERE {_SETTLED}", old)
        if instances or results:
            spool.do(f"DELETE FROM instance WHERE series IN ({_ENDED})", old)  # noqa: S608
            spool.do(f"DELETE FROM result WHERE {_SETTLED}", old)  # noqa: S608
            spool.do("DELETE FROM delivery WHERE result NOT IN (SELECT id FROM result)")
            spool.do(
                f"DELETE FROM series WHERE id IN ({_ENDED}) AND id NOT IN (SELECT series FROM result)",  # noqa: S608
                old,
            )
        spool.do(
            "DELETE FROM association WHERE ended<? AND id NOT IN (SELECT association FROM instance)", old
        )
        # Those of an association are taken from the number of its refusals, as long as that is known.
        spool.do(
            "DELETE FROM refusal WHERE at<? AND association NOT IN (SELECT id FROM association)"
            " AND series NOT IN (SELECT uid FROM series)",
            old,
        )
    spool.remove("instances", instances)
    spool.remove("results", results)
    until = time.time() - keep_dead
    dead = [path.name for path in (spool.folder / "dead").iterdir() if _rejected(path) < until]
    spool.remove("dead", dead)
    return len(instances) + len(results) + len(dead)


def _rejected(path: Path) -> float:
    """When a result was rejected: the time of its note, for the object changes when its other name is removed."""
    note = path.with_suffix(".json")
    return note.stat().st_mtime if note.exists() else path.stat().st_ctime
