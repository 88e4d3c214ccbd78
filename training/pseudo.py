"""Label slices that nobody has labelled with a trained liver net, so that the next one sees more patients.

    python -m training.pseudo runs/teacher/last.pt --shared ../shared/data -o runs/pseudo.npz
    python -m training.prepare --shared ../shared/data --pseudo runs/pseudo.npz -o runs/store

The answers of the net to the slice at three scales are averaged (Lee, *Pseudo-Label*, 2013; Xie et al., arXiv
1911.04252, for training the next net under stronger augmentation than the labels were made with). Slices of which it
is not sure are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.checkpoint import load
from training.methods import Method
from training.readers.unlabelled import unlabelled
from training.store import resize
from trtseg.fit import AIR_HU
from trtseg.io import atomic

ZOOMS = (0.85, 1.0, 1.18)
#: Pixels with a probability in [0.1, 0.9] over pixels of liver above which a slice is left out.
MOST_DOUBT = 0.22


def _zoomed(x: Tensor, zoom: float) -> Tensor:
    """Sample ``[n, 1, H, W]`` at positions ``zoom`` times as far from the centre; zeros outside."""
    theta = torch.tensor([[zoom, 0, 0], [0, zoom, 0]], dtype=torch.float32).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


@torch.no_grad()
def probability(method: Method, hu: Tensor) -> Tensor:
    """Mean probability of liver over `ZOOMS` for HU ``[n, 2H, 2W]``, float32 ``[n, 2H, 2W]``."""
    total = torch.zeros(hu.shape)
    for zoom in ZOOMS:
        small = F.avg_pool2d(_zoomed(hu[:, None].float() - AIR_HU, zoom), 2)[:, 0] + AIR_HU
        p = method.probabilities(small)[0][:, None]
        p = F.interpolate(p, scale_factor=2, mode="bilinear", align_corners=False)
        total += _zoomed(p, 1 / zoom)[:, 0]
    return total / len(ZOOMS)


def pseudo_labels(method: Method, hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of slices ``[N, 2H, 2W]``, and the doubt ``[N]`` that `MOST_DOUBT` bounds; infinite where no liver is."""
    labels = np.zeros(hu.shape, np.uint8)
    doubt = np.full(len(hu), np.inf)
    for i in range(len(hu)):
        p = probability(method, torch.from_numpy(hu[i : i + 1]))[0]
        labels[i] = (p > 0.5).numpy()
        if liver := int(labels[i].sum()):
            doubt[i] = float(((p > 0.1) & (p < 0.9)).sum()) / liver
    return labels, doubt


def main() -> None:
    """Parse the command line and label."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", type=Path, help="checkpoint of a liver net")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("-o", "--output", type=Path, required=True, help=".npz file")
    args = parser.parse_args()
    method, settings = load(args.teacher)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("hu", "label", "case", "group", "z")}
    for scan in unlabelled(args.shared):
        hu = resize(scan.hu, scan.spacing, 2 * settings.size)
        label, doubt = pseudo_labels(method, hu)
        sure = doubt < MOST_DOUBT
        print(
            f"{scan.name}: {sure.sum()} of {len(sure)} slices labelled, {(doubt == np.inf).sum()} have no liver, "
            f"median doubt {np.median(doubt):.3f}"
        )
        names = (np.full(len(sure), name) for name in (scan.name, scan.group))
        for column, values in zip(columns.values(), (hu, label, *names, np.array(scan.z)), strict=True):
            column.append(values[sure])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(args.output) as (path,), path.open("wb") as file:
        np.savez_compressed(file, **{name: np.concatenate(parts) for name, parts in columns.items()})


if __name__ == "__main__":
    main()
