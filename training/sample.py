"""Which slices a training step sees: a function of the seed and of the sample's number, and of nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training import data
from training.augment import augment, remove_liver
from training.lesions import add_gallbladder, add_lesions, paste_lesion
from training.lobes import hang_lobe
from trtseg.errors import InputError

#: Of each method's samples the share with a tumour, with liver but no tumour, and without liver. N2 sees nothing of
#: slices without liver.
SHARES = {
    "liver": (0.30, 0.37, 0.33),
    "tumour": (0.50, 0.50, 0.0),
    "one-step": (0.40, 0.30, 0.30),
    "joint": (0.40, 0.30, 0.30),
}

#: Where the liver is to be found: share of livers that are painted over, and beside which a gallbladder is put.
HIDDEN, GALLBLADDERS = 0.12, 0.3


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Endless augmented samples, by number: HU float32 and label uint8, ``[H, W]``.

    A sample's number decides it, so that a resumed run sees what an unbroken one would have seen, however many
    processes and loaders share the work.

    Parameters
    ----------
    slices : Slices
        To draw from.
    method : str
        Key of `SHARES`.
    lesions : float
        Probability that synthetic lesions are put into a liver.
    seed : int
        Of the run.
    paste : float
        Probability that a lesion of another slice is put into a liver.
    gallbladders : float
        Probability that one is put beside a liver for a tumour net; for nets that find livers it is `GALLBLADDERS`.
    lobes : float
        Probability that the left lobe of a slice further up is let hang down.
    """

    def __init__(
        self,
        slices: data.Slices,
        method: str,
        lesions: float,
        seed: int,
        *,
        paste: float = 0.0,
        gallbladders: float = 0.0,
        lobes: float = 0.0,
    ) -> None:
        if method != "liver":
            slices = slices.where(slices.knows_tumour)
        self.slices, self.seed = slices, seed
        self.lesions, self.paste, self.lobes = lesions, paste, lobes
        finds_liver = method != "tumour"
        self.hide_liver, self.gallbladders = (HIDDEN, GALLBLADDERS) if finds_liver else (0.0, gallbladders)
        liver, tumour = slices.has_liver, slices.has_tumour
        pools = (np.flatnonzero(tumour), np.flatnonzero(liver & ~tumour), np.flatnonzero(~liver))
        share = np.array([s if len(pool) else 0.0 for s, pool in zip(SHARES[method], pools, strict=True)])
        self.pools = [(pool, _by_group(slices.group[pool])) for pool in pools]
        if not share.any():
            raise InputError(
                f"slices: got none to train {method} on; prepare a store with cases that may train, with liver"
                + ("" if method == "liver" else " and known tumours")
            )
        self.share = share / share.sum()

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """The sample of that number."""
        rng = np.random.default_rng((self.seed, number))
        kind = int(rng.choice(3, p=self.share))
        row = self._row(kind, rng)
        hu, label = self.slices[row]
        if kind == 2:
            # slices without liver also come prone or mirrored: they have none either way
            axes = [axis for axis in (0, 1) if rng.random() < 0.3]
            hu, label = np.flip(hu, axes).copy(), np.flip(label, axes).copy()
        elif rng.random() < self.hide_liver:
            remove_liver(torch.from_numpy(hu), torch.from_numpy(label), rng)
        else:
            if self.lobes and rng.random() < self.lobes and (above := self._above(row, rng)):
                hang_lobe(hu, label, above, rng)
            if rng.random() < self.lesions:
                add_lesions(hu, label, rng)
            if self.paste and rng.random() < self.paste:
                paste_lesion(hu, label, self.slices[self._row(0, rng)], rng)
            if rng.random() < self.gallbladders:
                add_gallbladder(hu, label, rng)
        return augment(torch.from_numpy(hu), torch.from_numpy(label), rng)

    def _row(self, kind: int, rng: np.random.Generator) -> int:
        """Draw a slice with tumour (0), with liver only (1), or without liver (2)."""
        pool, p = self.pools[kind]
        return int(pool[rng.choice(len(pool), p=p)])

    def _above(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        """HU and label of a slice of the same scan, some slices nearer to the head; None beyond its end."""
        other = row + int(rng.integers(2, 25))
        if other < len(self.slices) and self.slices.case[other] == self.slices.case[row]:
            return self.slices[other]
        return None


def _by_group(group: np.ndarray) -> np.ndarray:
    """Probabilities of slices: a patient of k slices weighs ``k ** 0.5``, so that nobody outvotes the rest."""
    if not len(group):
        return np.zeros(0)
    _, inverse, count = np.unique(group, return_inverse=True, return_counts=True)
    p = count[inverse] ** -0.5
    return p / p.sum()
