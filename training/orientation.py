"""Fit the weights of `trtseg.orientation`: ``python -m training.orientation --shared ../shared/data -o weights.npz``.

Slices of patients with a liver are examples, slices of heads, necks, chests and pelves counter-examples. Patients that
validate are left out, and so is whoever's licence forbids training. Two convex fits, in double precision and with no
random number in them, so the same data gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.cases import Case, read_checked
from training.program import parser_of, plain_errors
from training.readers.shared import VALIDATION, shared_liver_slices
from training.readers.slices import negatives, png_slices
from trtseg.io import atomic
from trtseg.orientation import TURNS, Weights, climbs, describe, score, turned

#: Crops of a thigh or of half a pelvis: they have no frame that could be turned.
_NO_PART_OF_A_TRUNK = "extremity_or_pelvis_crop"
#: A patient whose whole CT ``benchmarks.robustness`` turns.
_BENCHMARK = ("CRLM-CT-1006",)
_PENALTY, _PENALTY_UPWARDS = 1e-3, 2e-3
_MIN_STACK, _DECIMALS = 3, 4


class Slices(NamedTuple):
    """Described slices; those of a stack follow each other from feet to head."""

    cells: np.ndarray  # float32 [n, 12, 12, 4], see `describe`
    aspects: np.ndarray  # [n]
    patient: np.ndarray  # str [n]: data set and patient
    stack: np.ndarray  # int [n]
    liver: np.ndarray  # bool [n]


def cases_to_fit(shared: Path) -> list[Case]:
    """The cases of the folder that training/README.md describes, without those that validate."""
    cases = [
        *(case for case in png_slices(shared / "lits_slices") if int(case.name[-2:]) < 11),
        *shared_liver_slices(shared),
        *negatives(shared / "negatives"),
    ]
    return [
        case
        for case in cases
        if case.trainable
        and not case.held_out
        and case.group not in VALIDATION + _BENCHMARK
        and case.body_part != _NO_PART_OF_A_TRUNK
    ]


def read_slices(cases: Iterable[Case]) -> Slices:
    """Read and describe all slices of some cases; slices without a body are left out."""
    rows = []
    for number, case in enumerate(cases):
        scan = read_checked(case)
        for described in describe([scan.hu[i] for i in np.argsort(scan.z)], (1.0, 1.0)):
            if described:
                rows.append(
                    (
                        described.cells,
                        described.aspect,
                        f"{case.source} {case.group}",
                        number,
                        not case.body_part,
                    )
                )
    return Slices(*(np.array(column) for column in zip(*rows, strict=True)))


def fit(slices: Slices) -> Weights:
    """Fit both scores.

    *Abdomen.* A slice is in one of 9 classes: an upper abdomen that lies in one of the 8 `TURNS`, with the score of
    that turn, or no upper abdomen, with the score 0. The loss is the cross-entropy of the softmax.

    *Upwards.* Of two slices a third of the stack apart, the upper one shall score higher: logistic regression.

    A patient with k slices in a data set weighs the root of k. An L2 penalty is on all weights but the bias.
    """
    *abdomen, aspect, bias = _fit_abdomen(slices)
    shape = slices.cells.shape[1:]
    upwards = _rounded(_fit_upwards(slices)).reshape(shape)
    return Weights(_rounded(abdomen).reshape(shape), _rounded(aspect), _rounded(bias), upwards)


def _fit_abdomen(slices: Slices) -> np.ndarray:
    """Weights ``[576 + 2]``, that of the aspect and the bias last."""
    n = len(slices.cells)
    features = np.ones((n, len(TURNS), slices.cells[0].size + 2))
    for i, turn in enumerate(TURNS):
        features[:, i, :-2] = turned(slices.cells, turn).reshape(n, -1)
        features[:, i, -2] = -slices.aspects if turn[0] else slices.aspects
    flat = features.reshape(-1, features.shape[2])
    share = _shares(slices.patient)
    target = np.zeros((n, len(TURNS)))
    target[slices.liver, 0] = 1

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = (flat @ weights).reshape(target.shape)
        total = np.logaddexp(0, np.logaddexp.reduce(scores, 1))
        errors = share[:, None] * (np.exp(scores - total[:, None]) - target)
        return share @ (total - (scores * target).sum(1)), errors.ravel() @ flat

    return _minimum(loss, flat.shape[1], _PENALTY, free=1)


def _fit_upwards(slices: Slices) -> np.ndarray:
    """Weights ``[576]``."""
    stacks = [slices.cells[slices.stack == number] for number in np.unique(slices.stack[slices.liver])]
    steps = [climbs(stack) for stack in stacks if len(stack) >= _MIN_STACK]
    share = _shares(np.repeat(np.arange(len(steps)), [len(step) for step in steps]))
    features = np.concatenate(steps).reshape(len(share), -1).astype(float)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        heights = features @ weights
        return share @ np.logaddexp(0, -heights), -(share / (1 + np.exp(heights))) @ features

    return _minimum(loss, features.shape[1], _PENALTY_UPWARDS)


def _minimum(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]], size: int, penalty: float, free: int = 0
) -> np.ndarray:
    """Minimise a convex loss with a penalty on the squares of all weights but the last ``free``."""
    from scipy.optimize import minimize

    factors = np.repeat([penalty, 0], [size - free, free])

    def penalised(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(weights)
        return value + factors @ weights**2, gradient + 2 * factors * weights

    options = {"maxiter": 5000, "maxfun": 5000, "ftol": 0, "gtol": 1e-8}
    return minimize(penalised, np.zeros(size), jac=True, method="L-BFGS-B", options=options).x


def _shares(names: np.ndarray) -> np.ndarray:
    """How much each slice weighs, so that k slices of a name weigh the root of k, and all together 1."""
    _, which, counts = np.unique(names, return_inverse=True, return_counts=True)
    shares = 1 / np.sqrt(counts[which])
    return shares / shares.sum()


def _count(patients: np.ndarray) -> int:
    """Number of patients, whatever data sets they are in."""
    return len({name.split(" ", 1)[1] for name in patients.tolist()})


def _rounded(weights: object) -> np.ndarray:
    """Round off digits that depend on the order of sums."""
    return np.round(np.asarray(weights), _DECIMALS).astype(np.float32)


@plain_errors()
def main() -> None:
    """Fit and write the weights, and say how well they do on the slices that they were fitted to."""
    parser = parser_of(__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the shared data")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="trtseg/orientation.npz, to ship them"
    )
    args = parser.parse_args()
    slices = read_slices(cases_to_fit(args.shared))
    weights = fit(slices)
    with atomic(args.output) as (path,), path.open("wb") as file:
        np.savez_compressed(file, **weights._asdict())
    scores = score(weights, slices.cells, slices.aspects)
    print(
        f"{slices.liver.sum()} slices of {_count(slices.patient[slices.liver])} patients with a liver, "
        f"{(~slices.liver).sum()} of {_count(slices.patient[~slices.liver])} without\n"
        f"right turn: {(scores[slices.liver].argmax(1) == 0).mean():.3f} of the slices with a liver; "
        f"taken for an upper abdomen: {(scores[slices.liver].max(1) > 0).mean():.3f} of them, "
        f"{(scores[~slices.liver].max(1) > 0).mean():.3f} of the others"
    )


if __name__ == "__main__":
    main()
