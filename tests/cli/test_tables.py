"""The tables of ``trtseg evaluate``: each number in its row and column, in its unit."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from trtseg.cli import tables
from trtseg.metrics.cases import CaseScores, RegionScores, evaluate_set
from trtseg.metrics.detection import LesionScores
from trtseg.metrics.overlap import Overlap
from trtseg.metrics.surface import SurfaceDistances


def test_each_metric_has_a_heading():
    assert A.liver.values().keys() == tables._METRICS.keys()


def apart(*mm):
    """Two surfaces of two voxels each, with their distances to each other."""
    return SurfaceDistances(np.array(mm[:2]), np.array(mm[2:]))


def scored(*numbers, distances=None):
    return RegionScores(Overlap(*numbers), distances or apart())


A = CaseScores(
    "a|b",
    scored(90, 10, 30, 870, distances=apart(0.0, 2.0, 1.0, 5.0)),
    predicted_ml=12.34,
    predicted_lesions=3,
    tumour=scored(6, 2, 6, 986, distances=apart(0.0, 3.0, 3.0, 4.0)),
    lesions=LesionScores(5, 3, 1, 2, (Overlap(6, 1, 3, 0),), (apart(0.0, 1.0, 1.0, 2.0),)),
    burden=(0.08, 0.1),
)
B = CaseScores(
    "B",
    scored(0, 0, 50, 950),
    predicted_ml=0.0,
    predicted_lesions=0,
    tumour=scored(0, 0, 0, 1000),
    lesions=LesionScores(0, 0, 0, 0),
    burden=(math.nan, 0.0),
)
C = CaseScores(
    "C",
    scored(100, 0, 0, 900, distances=apart(0.0, 0.0, 0.0, 0.0)),
    predicted_ml=7.0,
    predicted_lesions=1,
    tumour=scored(10, 10, 0, 980, distances=apart(0.0, 0.0, 0.0, 1.0)),
    lesions=LesionScores(1, 1, 0, 1),
    burden=(0.2, 0.1),
)
BLIND = CaseScores("blind", scored(100, 0, 0, 900), predicted_ml=7.06, predicted_lesions=1)

WRITTEN = """\
| mean ± SD over cases | liver | tumour |
|---|---:|---:|
| Dice | 0.606 ± 0.533 | 0.756 ± 0.214 |
| Dice, all voxels as one case | 0.809 | 0.640 |
| IoU | 0.564 ± 0.512 | 0.643 ± 0.311 |
| VOE | 0.436 ± 0.512 | 0.357 ± 0.311 |
| RVD | -0.389 ± 0.536 | +0.222 ± 0.694 |
| ASSD, mm | 1.00 ± 1.41 (1 undefined) | 1.38 ± 1.59 (1 undefined) |
| RMSD, mm | 1.37 ± 1.94 (1 undefined) | 1.71 ± 1.71 (1 undefined) |
| MSD, mm | 2.50 ± 3.54 (1 undefined) | 2.50 ± 2.12 (1 undefined) |
| HD95, mm | 2.40 ± 3.39 (1 undefined) | 2.45 ± 2.12 (1 undefined) |
| pixel accuracy | 0.9700 ± 0.0265 | 0.9940 ± 0.0053 |
| Rand index | 0.9427 ± 0.0505 | 0.9881 ± 0.0105 |

| lesions | IoU > 0.5 |
|---|---:|
| detected | 1 of 6 |
| false | 3 of 4 |
| precision | 0.250 |
| recall | 0.167 |
| F1 | 0.200 |
| recall at any overlap | 0.500 |
| tumour burden, RMSE | 7.21% (1 undefined) |
| tumour burden, largest error | 10.00% (1 undefined) |

| mean over detected lesions | n = 1 |
|---|---:|
| Dice | 0.750 |
| IoU | 0.600 |
| VOE | 0.400 |
| RVD | -0.222 |
| ASSD, mm | 1.00 |
| RMSD, mm | 1.22 |
| MSD, mm | 2.00 |
| HD95, mm | 1.95 |

| case | liver Dice | ASSD mm | HD95 mm |
|---|---:|---:|---:|
| a\\|b | 0.818 | 2.00 | 4.80 |
| B | 0.000 | – | – |
| C | 1.000 | 0.00 | 0.00 |

| case | mL called tumour | in lesions | tumour Dice | ASSD mm | HD95 mm | lesions found | false | burden error |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| a\\|b | 12.3 | 3 | 0.600 | 2.50 | 3.95 | 1 of 5 | 2 | -2.00% |
| B | 0.0 | 0 | 1.000 | – | – | 0 of 0 | 0 | – |
| C | 7.0 | 1 | 0.667 | 0.25 | 0.95 | 0 of 1 | 1 | +10.00% |

- c was left out
"""


def test_the_document_has_every_number_at_its_place():
    document = tables.markdown(evaluate_set([A, B, C]), ["c was left out"])
    assert document.startswith(
        "# Evaluation of 3 cases\n\nNot for clinical use. – is undefined.\n\n" + WRITTEN
    )
    assert tables.markdown(evaluate_set([A])).startswith("# Evaluation of 1 case\n")


def test_a_name_with_an_end_of_a_line_stays_in_its_row_of_the_markdown():
    named = replace(A, name="u\n# title\x1b[2J")
    lines = tables.markdown(evaluate_set([named]), ["u\n# title was left out"]).splitlines()
    assert sum(line.startswith("#") for line in lines) == 1
    assert sum(line.startswith(r"| u # title\x1b[2J |") for line in lines) == 2
    assert "- u # title was left out" in lines


def printed(capsys, *cases):
    """The tables on stdout: for each its rows, and of these the cells."""
    tables.show(evaluate_set(cases))
    text = capsys.readouterr().out
    assert text.endswith("Not for clinical use.\n")
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text) if "──" in block]
    return [
        [re.split(r" {2,}", row.strip()) for row in block if "──" not in row and row.strip()]
        for block in blocks
    ]


def test_the_screen_has_the_tables_of_the_document(capsys):
    document = [block.splitlines() for block in WRITTEN.split("\n\n")[:-1]]
    written = [
        [row.replace("\\|", "/").strip("| ").split(" | ") for row in (rows[0], *rows[2:])]
        for rows in document
    ]
    summary, lesions, detected, liver, tumour = written
    shown = printed(capsys, A, B, C)
    assert [[[cell.replace("|", "/") for cell in row] for row in rows] for rows in shown] == [
        liver, tumour, summary, lesions, detected,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "firsts"),
    [
        (A, ["liver", "lesions", "mean over detected lesions"]),
        (B, ["liver", "lesions"]),
        (BLIND, ["case", "liver"]),
    ],
)
def test_of_one_case_nothing_is_printed_twice(capsys, case, firsts):
    shown = printed(capsys, case)
    assert [rows[0][0] for rows in shown] == firsts
    assert "Dice, all voxels as one case" not in [row[0] for rows in shown for row in rows]
    if case is B:
        assert ["ASSD, mm", "–", "–"] in shown[0]
        assert ["tumour burden, RMSE", "–"] in shown[1]
    if case is BLIND:
        assert shown[0] == [["case", "mL called tumour", "in lesions"], ["blind", "7.1", "1"]]
        assert shown[1][:2] == [["liver"], ["Dice", "1.000"]]


def test_numbers_stand_below_each_other(capsys):
    tables.show(evaluate_set([A, B]))
    assert capsys.readouterr().out.splitlines()[1:5] == [
        "  case   liver Dice   ASSD mm   HD95 mm  ",
        " ─────────────────────────────────────── ",
        "  a|b         0.818      2.00      4.80  ",
        "  B           0.000         –         –  ",
    ]
