"""Whether a tumour net that sees a slice's neighbours finds more: nets of one, three and five slices, trained alike.

    python -m training.stacks runs/kit.zip --out runs/stacks.json

The nets have the shape of the shipped ones. They train on the slices of a kit whose tumours are known, two seeds each.
What counts as a neighbour is the next slice of the CT in the kit, 1 to 3 slices away; where there is none, a slice is
its own neighbour. Nets see the true liver, so that nothing but the tumours is compared. Each patient's Dice is printed
without and with the median of three neighbouring labels.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import appearance, batch, kit_score
from training import kit as kits
from training.cases import UNKNOWN
from training.checkpoint import Settings
from training.losses import Loss
from training.methods import Liver, Tumour, windowed
from training.program import parser_of, plain_errors
from training.row import Split, training_rows
from training.trainer import Run, Trainer
from training.unet import UNet
from trtseg.fit import AIR_HU
from trtseg.io.atomic import atomic
from trtseg.io.folders import check_writable, make_folder

CHANNELS, SEEDS = (1, 3, 5), (0, 1)
#: Slices of a CT that lie further apart than so many are no neighbours.
REACH = 3
#: Pixels by which the mask of the liver grows.
GROW = 3
#: Patients who test: two data sets with tumours that people drew, one whose tumours nets drew, and a healthy liver.
TEST = ("A", "ircadb-1", "ircadb-2", "chaos-3")
#: The shape is that of the shipped nets.
SETTINGS = Settings(
    "tumour", steps=1500, batch=32, width=24, depth=3, stem=16, lr=2e-3, ema=0.995, overlap="dice"
)


def neighbours(kit: kits.Kit, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``rows`` of the slice below and above each row, int64 ``[n]``; its own where there is none."""
    below, above = np.arange(len(rows)), np.arange(len(rows))
    for case in np.unique(kit.case[rows]):
        own = np.flatnonzero(kit.case[rows] == case)
        own = own[np.argsort(kit.z[rows[own]], kind="stable")]
        near = np.diff(kit.z[rows[own]]) <= REACH
        above[own[:-1][near]], below[own[1:][near]] = own[1:][near], own[:-1][near]
    return below, above


def stacked(row: Tensor, channels: int, below: Tensor, above: Tensor) -> list[Tensor]:
    """Rows of the slices that a net of so many channels sees, lowest first, for rows ``[B]``."""
    down, up = [row], [row]
    for _ in range(channels // 2):
        down.append(below[down[-1]])
        up.append(above[up[-1]])
    return [*reversed(down[1:]), *up]


class StackTrainer(Trainer):
    """Trains a tumour net on several slices at once, which move and change together."""

    def __init__(
        self, method: Tumour, settings: Settings, run: Run, store: batch.DeviceKit, near: Near
    ) -> None:
        p = torch.full((len(store),), 1 / len(store), device=store.image.device)
        super().__init__("tumour", method, settings, run, store, p)
        self.near = near

    @torch.no_grad()
    def samples(self) -> tuple[batch.Batch, Tensor]:
        """`ahead` batches, and what the net sees, ``[n, channels, H, W]``."""
        store, g, size = self.store, self.g, self.settings.size
        row = torch.multinomial(self.p, self.ahead * self.run.batch, replacement=True, generator=g)
        grid, area = batch.positions(store, len(row), g, size)
        chance = appearance.Chance(len(row), g)
        gain, offset, sigma = chance.uniform(0.75, 1.3), chance.normal(18), chance.uniform(2, 20)
        seen = []
        for own in self.near(row):
            b = batch.at(store, own, grid, area)
            noise = torch.randn(b.hu.shape, generator=g, device=b.hu.device) * sigma
            hu = torch.where(b.hu > AIR_HU / 2, (b.hu - 40) * gain + 40 + offset + noise, b.hu)
            seen.append(masked(hu, b.label))
        return batch.at(store, row, grid, area), torch.cat(seen, 1)

    def _loss(self, b: batch.Batch, mask: Tensor) -> Tensor:
        logits = self.method.logits("tumour", mask.contiguous(memory_format=torch.channels_last))
        counts = (appearance.grown(b.label > 0, GROW) > 0) & (b.label != UNKNOWN)
        return self.pixels(logits, b.label == 2, where=counts)


class Near:
    """The slices that a net of some channels sees, for rows of a store."""

    def __init__(self, kit: kits.Kit, rows: np.ndarray, channels: int, device: torch.device) -> None:
        self.channels = channels
        self.below, self.above = (torch.from_numpy(a).to(device) for a in neighbours(kit, rows))

    def __call__(self, row: Tensor) -> list[Tensor]:
        """Rows ``[B]`` of each channel."""
        return stacked(row, self.channels, self.below, self.above)


def masked(hu: Tensor, label: Tensor) -> Tensor:
    """What a tumour net sees of slices ``[B, H, W]``: the window within the liver and its rim, ``[B, 1, H, W]``."""
    return windowed(hu, "tumour") * appearance.grown(label > 0, GROW)[:, None]


def trained(
    kit: kits.Kit, rows: np.ndarray, channels: int, settings: Settings, device: torch.device
) -> Tumour:
    """A tumour net of some channels, with averaged weights."""
    torch.manual_seed(settings.seed)
    net = UNet(1, settings.width, settings.depth, settings.dropout, settings.stem, channels)
    loss = Loss(2, settings.balance, settings.overlap)
    method = Tumour(net, loss, Liver(UNet(width=4, depth=1), loss))  # a liver net that nobody asks
    kit_score.to_device(method, device)
    store = batch.DeviceKit.of(kit, rows, device)
    run = Run(steps=settings.steps, batch=settings.batch, lr=settings.lr, ema=settings.ema)
    trainer = StackTrainer(method, settings, run, store, Near(kit, rows, channels, device))
    for _ in trainer.steps():
        pass
    trainer.average_into(method.nets["tumour"])
    return method.eval()


@torch.no_grad()
def scores(
    kit: kits.Kit, rows: np.ndarray, method: Tumour, channels: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Each patient's Dice, without the median of labels and with it; mL called tumour where there is none."""
    store, near = batch.DeviceKit.of(kit, rows, device), Near(kit, rows, channels, device)
    every = torch.arange(len(rows), device=device)
    found = []
    for part in every.split(kit_score.BATCH):
        x = torch.cat([masked(store.hu(own), store.label[own]) for own in near(part)], 1)
        found.append(method.logits("tumour", x.contiguous(memory_format=torch.channels_last))[:, 0] > 0)
    alone = torch.cat(found) & (store.label > 0) & (store.label != UNKNOWN)
    median = sum(alone[own].int() for own in stacked(every, 3, near.below, near.above)) >= 2
    thickness = np.nan_to_num(kit.thickness_mm[rows], nan=kit_score.THICKNESS)
    ml = torch.from_numpy(kit.pixel_mm[rows] ** 2 * thickness / 1000).to(device)
    result = {}
    for patient in np.unique(kit.group[rows]):
        own = torch.from_numpy(np.flatnonzero(kit.group[rows] == patient)).to(device)
        true, pair = store.label[own] == 2, []
        for labels in (alone[own], median[own]):
            if true.any():
                pair.append(float(2 * (labels & true).sum() / (labels.sum() + true.sum())))
            else:
                pair.append(float((labels.flatten(1).sum(1) * ml[own]).sum()))
        result[str(patient)] = (pair[0], pair[1])
    return result


def compare(path: Path, out: Path, steps: int) -> None:
    """Train and score all nets; the scores of each are printed, and kept in ``out``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kit = kits.read(path)
    make_folder(out.parent, "--out")
    check_writable(out.parent, "--out")
    train = training_rows(kit, Split(TEST, ()))
    test = np.flatnonzero(np.isin(kit.group, TEST) & (kit.tumour_known | (kit.group == "chaos-3")))
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    kept: dict[str, object] = {"steps": steps, "slices": len(train), "device": device_name, "kit": kit.sha256}
    for seed in SEEDS:
        for channels in CHANNELS:
            method = trained(kit, train, channels, replace(SETTINGS, steps=steps, seed=seed), device)
            kept[f"{channels} {seed}"] = found = scores(kit, test, method, channels, device)
            print(
                f"{channels} slices, seed {seed}:",
                {p: [round(v, 3) for v in pair] for p, pair in found.items()},
            )
            with atomic(out) as (temporary,):
                temporary.write_text(json.dumps(kept, indent=1))


@plain_errors()
def main() -> None:
    """Parse the command line and compare."""
    parser = parser_of(__doc__)
    parser.add_argument("kit", type=Path, help="file of training.kit")
    parser.add_argument("--out", type=Path, required=True, help="file of the scores, JSON")
    parser.add_argument("--steps", type=int, default=SETTINGS.steps, help=f"of each net ({SETTINGS.steps})")
    args = parser.parse_args()
    compare(args.kit, args.out, args.steps)


if __name__ == "__main__":
    main()
