"""What the tests of the acceptance gate share: a net with its reference, and an engine that repeats the reference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trtseg.engines.acceptance import Acceptance, check
from trtseg.engines.calibration import Reference
from trtseg.engines.precision import FP16
from trtseg.spec import ModelSpec

ROLES = ("liver", "tumour", "one-step")


class Case(NamedTuple):
    """A net, and what the reference says of some slices."""

    spec: ModelSpec
    reference: Reference


def checked(run, case: Case, batch: int, precision=FP16) -> Acceptance:
    where = {"device": "a GPU", "driver": "1.2"}
    return check(run, case.reference, spec=case.spec, precision=precision, batch=batch, **where)


def numbers(case: Case, rows: np.ndarray) -> list[int]:
    """Which calibration slice each row is."""
    images = case.reference.images.astype(rows.dtype)
    known = {image.tobytes(): number for number, image in enumerate(images)}
    return [known[row.tobytes()] for row in rows]


def sound(case: Case):
    """An engine that gives the reference's logits in its type."""
    return lambda rows: case.reference.logits[numbers(case, rows)].astype(rows.dtype)


def begins(found: Acceptance, *starts: str) -> None:
    """The reasons are these and no others, by how they begin."""
    assert not found.accepted
    assert [next((s for s in starts if r.startswith(s)), r) for r in found.reasons] == list(starts)
