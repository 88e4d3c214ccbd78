"""What a node no longer keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from trtseg.node.log import say
from trtseg.node.spool import Spool

_ENDED = "SELECT id FROM series WHERE state NOT IN ('open', 'part') AND ended<?"
_SETTLED = (
    "made<? AND id NOT IN (SELECT result FROM delivery WHERE state='waiting')"
    " AND series NOT IN (SELECT id FROM series WHERE state='part')"
)


def abandon(spool: Spool, destinations: Sequence[str]) -> None:
    """Put results aside that wait for any other destination: nobody sends them, and they would be kept for ever."""
    rows = spool.rows(
        "SELECT d.result, d.destination, r.file FROM delivery d JOIN result r ON r.id=d.result"
        " WHERE d.state='waiting'"
    )
    waiting = [row for row in rows if row["destination"] not in destinations]
    for row in waiting:
        spool.bury(row["result"], row["destination"], row["file"], "destination is not in the settings")
    if waiting:
        say(
            "results put aside", level=logging.WARNING, results=len(waiting),
            reason="destination is not in the settings",
        )  # fmt: skip


def purge(spool: Spool, keep: float, keep_dead: float) -> int:
    """Remove what was finished, and what was rejected, longer ago than that many seconds; the number of files."""
    old = time.time() - keep
    with (
        spool.transaction()
    ):  # rows first: a file without a row is swept, a row without a file would be an error
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
        spool.do("DELETE FROM refusal WHERE at<?", old)
        spool.do(
            "DELETE FROM association WHERE ended<? AND id NOT IN (SELECT association FROM instance)", old
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
