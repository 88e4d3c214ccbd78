"""What the paper's metrics are computed from, as few numbers as a patient needs: counts of pixels, and a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.batch import DeviceKit
from training.cases import UNKNOWN
from training.kit import Kit
from training.kit_score import BATCH, probabilities
from training.methods import Method, OneStep
from trtseg.metrics.overlap import Overlap
from trtseg.metrics.ranking import PAPER_BAND

#: Ends of the bins of tumour probability, 0.1 apart as logits; bin k holds what is above end k - 1 and not above end k.
EDGES = np.unique(np.append(1 / (1 + np.exp(-np.arange(-120, 121) / 10)), PAPER_BAND).astype(np.float32))


@dataclass(frozen=True)
class Tally:
    """Slices of a patient, or of some, as a method labels them; tallies of patients add up.

    Attributes
    ----------
    slices : ndarray
        int64 ``[2]``: number of slices, and of those with tumour.
    pixels : ndarray
        int64 ``[2, bins]``: pixels without and with tumour, by their tumour probability, see `EDGES`.
    tumour, liver : Overlap
        Of the labels that the method gives, liver with its tumours.
    """

    slices: np.ndarray
    pixels: np.ndarray
    tumour: Overlap
    liver: Overlap

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.slices + other.slices,
            self.pixels + other.pixels,
            self.tumour + other.tumour,
            self.liver + other.liver,
        )

    def above(self, threshold: float) -> Overlap:
        """Of what has a tumour probability above a threshold, which is one of `EDGES`."""
        k = int(np.searchsorted(EDGES, np.float32(threshold))) + 1
        (tn, fn), (fp, tp) = self.pixels[:, :k].sum(1).tolist(), self.pixels[:, k:].sum(1).tolist()
        return Overlap(tp, fp, fn, tn)

    def to_json(self) -> dict[str, Any]:
        """As lists of numbers."""
        of = {name: [o.tp, o.fp, o.fn, o.tn] for name, o in (("tumour", self.tumour), ("liver", self.liver))}
        return {"slices": self.slices.tolist(), "pixels": self.pixels.tolist(), **of}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Tally:
        """Undo `to_json`."""
        arrays = (np.array(stored[name], np.int64) for name in ("slices", "pixels"))
        return cls(*arrays, Overlap(*stored["tumour"]), Overlap(*stored["liver"]))


@torch.no_grad()
def tallies(kit: Kit, rows: np.ndarray, store: DeviceKit, method: Method, size: int) -> dict[str, Tally]:
    """Label the rows of a kit, which lie in ``store``, by nets of ``size`` pixels, and count for each patient.

    The grid is the kit's; pixels that nobody knows do not count.
    """
    method.eval()
    edges = torch.from_numpy(EDGES).to(store.image.device)
    bins = len(EDGES) + 1
    names, patient = np.unique(kit.group[rows], return_inverse=True)
    of = torch.from_numpy(patient).to(edges.device)[:, None, None]
    pixels = torch.zeros(len(names) * 2 * bins, dtype=torch.int64, device=edges.device)
    counts = {
        name: torch.zeros(len(names) * 4, dtype=torch.int64, device=edges.device) for name in ("t", "l")
    }
    for part in torch.arange(len(store), device=edges.device).split(BATCH):
        p_liver, p_tumour = probabilities(method, store.hu(part), size)
        label = store.label[part]
        known, own = label != UNKNOWN, of[part].expand(label.shape)
        where = (own * 2 + (label == 2)) * bins + torch.bucketize(p_tumour, edges)
        pixels += torch.bincount(where[known], minlength=len(pixels))
        liver, tumour = _labels(method, p_liver, p_tumour)
        for name, found, true in (("t", tumour, label == 2), ("l", liver, label > 0)):
            cell = own * 4 + torch.where(true, torch.where(found, 0, 2), torch.where(found, 1, 3))
            counts[name] += torch.bincount(cell[known], minlength=len(counts[name]))
    histogram = pixels.view(len(names), 2, bins).cpu().numpy()
    tumours, livers = (counts[name].view(-1, 4).tolist() for name in ("t", "l"))
    with_tumour = (kit.label[rows] == 2).any((1, 2))
    slices = np.stack([np.bincount(patient), np.bincount(patient, with_tumour)], 1).astype(np.int64)
    return {
        str(name): Tally(slices[i], histogram[i], Overlap(*tumours[i]), Overlap(*livers[i]))
        for i, name in enumerate(names)
    }


def _labels(method: Method, p_liver: Tensor, p_tumour: Tensor) -> tuple[Tensor, Tensor]:
    """Liver and tumour: for one net the most likely of three classes, for two nets their thresholds 0.5."""
    if isinstance(method, OneStep):
        best = torch.stack([1 - p_liver, p_liver - p_tumour, p_tumour]).argmax(0)
        return best > 0, best == 2
    return p_liver > 0.5, (p_liver > 0.5) & (p_tumour > 0.5)


def auc(pixels: np.ndarray) -> float:
    """Area under the ROC curve of a histogram ``[2, bins]``; pixels of one bin are ties. NaN without both classes."""
    other, tumour = pixels.astype(np.float64)
    if not other.sum() or not tumour.sum():
        return math.nan
    below = np.cumsum(other) - other / 2
    return float((tumour * below).sum() / (tumour.sum() * other.sum()))


def in_band(pixels: np.ndarray) -> np.ndarray:
    """The part of a histogram whose probabilities lie in `PAPER_BAND`."""
    low, high = (int(np.searchsorted(EDGES, np.float32(end))) for end in PAPER_BAND)
    return pixels[:, low + 1 : high + 1]


def best_threshold(patients: dict[str, Tally]) -> float:
    """The end of a bin in `PAPER_BAND` above which sensitivity plus specificity is largest, patients weighing the same.

    Of equal ends the nearest to 0.5; 0.5 if there is nothing to choose by.
    """
    low = int(np.searchsorted(EDGES, np.float32(PAPER_BAND[0])))
    other, tumour = np.zeros(2), np.zeros(2)
    for kind in (0, 1):
        parts = [in_band(t.pixels)[kind] for t in patients.values()]
        shares = [part / part.sum() for part in parts if part.sum()]
        if not shares:
            return 0.5
        other, tumour = (np.mean(shares, 0), tumour) if kind == 0 else (other, np.mean(shares, 0))
    # what the end before bin k leaves below it: false positives and misses
    youden = np.append(0, np.cumsum(other - tumour))
    ends = EDGES[low : low + len(youden)]
    best = ends[youden > youden.max() - 1e-9]
    return float(best[np.abs(best - 0.5).argmin()])
