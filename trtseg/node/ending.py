"""When a series is complete: by what its instances and associations say, and by silence only where they say nothing.

DICOM has no message for the end of a series, and slices arrive in any order. A series that was ended too early costs a
second result, so weak evidence shortens the silence that is waited for, and only strong evidence ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtseg.node.spool import Spool


@dataclass(frozen=True)
class Evidence:
    """What is known about the end of a series.

    Attributes
    ----------
    instances : int
        That have arrived.
    related : int or None
        NumberOfSeriesRelatedInstances: how many the sender says that there are, in all; None where more have arrived.
    acquisitions_full : bool
        Each AcquisitionNumber has as many instances as ImagesInAcquisition says. A further acquisition may follow.
    open : bool
        An association that brought some of them is still open, and has not gone over to another series.
    clean : bool
        All the others were released, neither aborted, broken off nor lost, and no instance was refused.
    last : float
        When the last instance arrived or the last association ended.
    is_over : bool
        The series was ended before, and has a part of its results.
    refused : int
        Instances that were refused and may be of this series. Those refused for lack of space, on any association,
        are known by their series, and count until they come. Of those refused for another reason only the association
        is known, so they count for each of its series. What is no CT does not count.
    broken_off : bool
        An association was lost, or broken off in the middle of an instance, before it went over to another series, and
        none that was opened since has brought any.
    """

    instances: int
    related: int | None
    acquisitions_full: bool
    open: bool
    clean: bool
    last: float
    is_over: bool = False
    refused: int = 0
    broken_off: bool = False

    @property
    def is_complete(self) -> bool:
        """As many instances have arrived as the sender says that there are."""
        return self.related is not None and self.instances >= self.related


def due(evidence: Evidence, quiet: float, long_quiet: float) -> float:
    """When a series ends if nothing else arrives.

    Parameters
    ----------
    evidence : Evidence
        Of the series.
    quiet, long_quiet : float
        Seconds of silence after the last association was released, and where there is no sign of an end.
    """
    if evidence.is_over:
        return evidence.last
    if evidence.related is not None:  # the sender's own count, of exactly this series
        return evidence.last + (0 if evidence.is_complete else long_quiet)
    if evidence.acquisitions_full:
        return evidence.last + (0 if evidence.clean and not evidence.open else quiet)
    return evidence.last + (quiet if evidence.clean and not evidence.open else long_quiet)


def look(spool: Spool) -> dict[int, Evidence]:
    """Collect the evidence of all series that are open, or have a part of their results."""
    parts: dict[int, list[Any]] = {}
    for row in spool.rows(
        "SELECT s.id series, s.uid, s.state, i.association, i.acquisition, COUNT(*) n, MAX(related) related,"
        " MAX(in_acquisition) wanted, MAX(received) received, MAX(i.id) newest"
        # A cross join goes from the few open series to their instances, and not through those of all series.
        " FROM series s CROSS JOIN instance i ON i.series=s.id WHERE s.state IN ('open', 'part')"
        " GROUP BY s.id, i.association, i.acquisition"
    ):
        parts.setdefault(row["series"], []).append(row)
    used = {row["association"] for rows in parts.values() for row in rows}
    associations = {
        number: spool.row(
            "SELECT opened, ended, how, refused - (SELECT COUNT(*) FROM refusal WHERE association=a.id) refused,"
            " (SELECT MAX(id) FROM instance WHERE association=a.id) newest FROM association a WHERE id=?",
            number,
        )
        for number in used
    }
    return {
        series: _evidence(
            rows,
            [associations[n] for n in {row["association"] for row in rows}],
            _missing(spool, rows[0]["uid"]),
        )
        for series, rows in parts.items()
    }


def _missing(spool: Spool, uid: str) -> int:
    """Count instances of a series, by its UID in the spool, that were refused for now and have not come since."""
    query = (
        "SELECT COUNT(DISTINCT sop) FROM refusal r WHERE series=?"
        " AND NOT EXISTS (SELECT 1 FROM instance WHERE sop=r.sop)"
    )
    return int(spool.row(query, uid)[0])


def _evidence(rows: Sequence[Any], associations: Sequence[Any], missing: int) -> Evidence:
    arrived: Counter[str | None] = Counter()
    wanted: dict[str | None, int] = {}
    for row in rows:
        arrived[row["acquisition"]] += row["n"]
        wanted[row["acquisition"]] = max(row["wanted"] or 0, wanted.get(row["acquisition"], 0))
    newest = max(row["newest"] for row in rows)
    refused = missing + sum(one["refused"] for one in associations)
    # An association whose last instance is of another series has gone over to that one.
    staying = [one for one in associations if one["newest"] <= newest]
    broken = max((one["ended"] for one in staying if one["how"] in ("broken off", "lost")), default=0.0)
    instances, related = sum(arrived.values()), max(row["related"] or 0 for row in rows)
    return Evidence(
        instances=instances,
        related=related if related >= instances else None,  # a number that is too small is no number of these
        acquisitions_full=all(arrived[acquisition] == count for acquisition, count in wanted.items()),
        open=any(one["ended"] is None for one in staying),
        clean=not refused and all(one["how"] in (None, "released") for one in associations),
        last=max(max(row["received"] for row in rows), *(one["ended"] or 0.0 for one in associations)),
        is_over=rows[0]["state"] == "part",
        refused=refused,
        broken_off=broken > max(one["opened"] for one in associations),
    )
