"""Score nets on the slices of a training kit, on its grid and without post-processing.

    python -m training.kit_score runs/kit.zip --liver runs/liver/last.pt --tumour runs/tumour/last.pt

The scores follow a training. What a user gets is measured by ``training.evaluate``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training import kit as kits
from training.batch import DeviceKit, cell_sums
from training.cases import UNKNOWN
from training.checkpoint import load, said_pixels
from training.methods import Method, Tumour
from training.program import parser_of, plain_errors
from training.weak import CELL_SHARE
from trtseg.errors import InputError

#: Probabilities of tumour above which a pixel is one, in turn.
THRESHOLDS = (0.3, 0.5, 0.75, 0.9)
#: The one whose Dice and volumes are printed.
THRESHOLD = 0.5
#: mL of liver on a slice without any above which it counts, and the thickness in mm of what is not known.
FALSE_ML, THICKNESS = 5.0, 5.0
BATCH = 32


@torch.no_grad()
def probabilities(method: Method, hu: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Probabilities of liver and tumour, ``[n, S, S]``, for HU ``[n, S, S]`` of a kit, by a net of ``size`` pixels."""
    side = hu.shape[1]
    x = hu if side == size else F.interpolate(hu[:, None], (size, size), mode="area")[:, 0]
    pair = method.probabilities(x)
    if side != size:
        pair = tuple(F.interpolate(p[:, None], (side, side), mode="bilinear")[:, 0] for p in pair)
    return pair


@torch.no_grad()
def counts(method: Method, store: DeviceKit, size: int) -> dict[str, np.ndarray]:
    """What the scores are sums of: for each slice of the store, numbers of pixels.

    ``liver`` is ``[n, 3]``: found and true, found, true; ``tumour`` the same with an axis for `THRESHOLDS`,
    ``[n, 4, 3]``; ``cells`` are pixels of tumour in each cell, ``[n, 4, MAX_CELLS + 1]``.
    """
    method.eval()
    parts: dict[str, list[np.ndarray]] = {"liver": [], "tumour": [], "cells": []}
    for rows in torch.arange(len(store), device=store.image.device).split(BATCH):
        p_liver, p_tumour = probabilities(method, store.hu(rows), size)
        label, cell = store.label[rows], store.cell[rows]
        known = label != UNKNOWN
        parts["liver"].append(_overlap((p_liver > 0.5) & known, (label > 0) & known))
        found = [p_tumour > t for t in THRESHOLDS]
        parts["tumour"].append(np.stack([_overlap(f & known, label == 2) for f in found], 1))
        parts["cells"].append(torch.stack([cell_sums(cell, f) for f in found], 1).cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _overlap(found: Tensor, true: Tensor) -> np.ndarray:
    return torch.stack([(m).flatten(1).sum(1) for m in (found & true, found, true)], 1).cpu().numpy()


def dice(pixels: np.ndarray) -> float:
    """Dice of ``[n, 3]`` pixels found and true, found, true, taken together; 1 if nothing is there and found."""
    both, found, true = pixels.sum(0)
    return float(2 * both / (found + true)) if found + true else 1.0


def score(kit: kits.Kit, rows: np.ndarray, store: DeviceKit, method: Method, size: int) -> dict[str, float]:
    """Scores by name, in the order in which they are printed.

    ``liver SET`` and ``liver SET worst`` are the mean Dice over the patients of a set and the worst, ``tumour PATIENT``
    the Dice of a patient whose tumours are known, ``tumour mL PATIENT`` what is called tumour in one who has none,
    ``cells SENSITIVITY SPECIFICITY at T`` of the cells, and ``negatives`` the number of slices with a false liver.
    """
    found = counts(method, store, size)
    group, source = kit.group[rows], kit.source[rows]
    has_liver = found["liver"][:, 2] > 0
    ml = (
        kit.pixel_mm[rows] ** 2
        * np.where(np.isnan(kit.thickness_mm[rows]), THICKNESS, kit.thickness_mm[rows])
        / 1000
    )
    empty = kit.body_part[rows] != ""
    scores: dict[str, float] = {}
    for name in dict.fromkeys(_family(s) for s in source[has_liver]):
        own = has_liver & np.array([_family(s) == name for s in source])
        each = [dice(found["liver"][own & (group == patient)]) for patient in np.unique(group[own])]
        scores[f"liver {name}"] = float(np.mean(each))
        if len(each) > 1:
            scores[f"liver {name} worst"] = min(each)
    if empty.any():
        scores["negatives"] = float((found["liver"][empty, 1] * ml[empty] > FALSE_ML).sum())
        scores["negatives of"] = float(empty.sum())
    if not isinstance(method, Tumour):
        return scores
    known = kit.tumour_known[rows] & ~empty
    at = THRESHOLDS.index(THRESHOLD)
    for patient in np.unique(group[known]):
        own = known & (group == patient)
        if found["tumour"][own, 0, 2].any():
            scores[f"tumour {patient}"] = dice(found["tumour"][own, at])
    for patient in ("chaos-3", "ircadb-1"):
        own = group == patient
        if own.any():
            false = found["tumour"][own, at, 1] - found["tumour"][own, at, 0]
            scores[f"false tumour mL {patient}"] = float((false * ml[own]).sum())
    area, flag = store.cell_area.cpu().numpy(), store.cell_flag.cpu().numpy()
    for i, threshold in enumerate(THRESHOLDS):
        hit = found["cells"][:, i] > CELL_SHARE * area
        for name, want in (("sensitivity", 1), ("specificity", 0)):
            if (flag == want).any():
                scores[f"cells {name} {threshold:g}"] = float((hit == want)[flag == want].mean())
    return scores


def _family(source: str) -> str:
    """Sets that are scored together: those of 3D-IRCADb-01 in 8 bits, and loose sets of single LiTS patients."""
    if source.startswith("ircadb") and source != "ircadb01":
        return "ircadb"
    return "lits" if source.startswith("lits") and source[4:].isdigit() and source != "lits256" else source


def text(scores: dict[str, float]) -> str:
    """The scores on one line."""
    return "  ".join(f"{name} {value:.3f}" for name, value in scores.items())


@plain_errors()
def main() -> None:
    """Parse the command line and print the scores."""
    parser = parser_of(__doc__)
    parser.add_argument("kit", type=Path)
    parser.add_argument("--liver", type=Path, required=True, help="checkpoint of the liver net")
    parser.add_argument("--tumour", type=Path, help="checkpoint of the tumour net")
    parser.add_argument("--every-slice", action="store_true", help="those that train too")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kit = kits.read(args.kit)
    rows = np.flatnonzero((kit.split == "validation") | args.every_slice)
    method, settings = load(args.tumour, args.liver) if args.tumour else load(args.liver)
    path, role = (args.tumour, "tumour") if args.tumour else (args.liver, "liver")
    if settings.method != role:
        raise InputError(f"{path}: is of the method {settings.method}; expected {role}")
    if (mm := kits.pixel_mm(kit, settings.size)) != settings.pixel_mm:
        print(
            f"warning: {path} has learnt on {said_pixels(settings.pixel_mm)}, and these are {said_pixels(mm)}",
            file=sys.stderr,
        )
    to_device(method, device)
    scores = score(kit, rows, DeviceKit.of(kit, rows, device), method, settings.size)
    for name, value in scores.items():
        print(f"{name:32} {value:.3f}")


def to_device(method: Method, device: torch.device) -> None:
    """Move a method and the liver net that it may stand behind; on a GPU both run in BF16 from then on."""
    method.to(device)
    if isinstance(method, Tumour):
        method.liver[0].to(device)
    if device.type == "cuda":
        method.compute_in(torch.bfloat16)


if __name__ == "__main__":
    main()
