"""Train the liver net, or the tumour net on what the liver net leaves of each slice.

    python -m training.train liver  --out runs/liver
    python -m training.train tumour --out runs/tumour --liver runs/liver/last.pt

The run writes ``log.csv`` and ``last.pt``; after a kill the same command resumes, with the same result.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from training import data
from training.augment import augment
from training.losses import balanced_loss, class_weights
from training.unet import UNet

SIZE = 256
STEPS = {"liver": 4000, "tumour": 1800}  # of the shipped nets
WINDOW = {"liver": (-160.0, 240.0), "tumour": (-40.0, 200.0)}  # HU mapped to 0 and 1


@dataclass(frozen=True)
class Settings:
    """What a run depends on; stored in the checkpoint and checked when it resumes."""

    role: str
    steps: int
    batch: int = 8
    lr: float = 2e-3
    weight_decay: float = 1e-2
    width: int = 16
    depth: int = 4
    dropout: float = 0.1
    seed: int = 0
    liver: str = ""  # SHA-256 of the liver net that a tumour net is trained behind


def windowed(hu: Tensor, role: str) -> Tensor:
    """HU ``[n, H, W]`` to the net's input ``[n, 1, H, W]`` in [0, 1], as ``prepare`` and ``gate`` compute it."""
    lo, hi = WINDOW[role]
    return ((hu.float() - lo) / (hi - lo)).clamp(0, 1)[:, None].contiguous(memory_format=torch.channels_last)


def net_input(hu: Tensor, role: str, liver: UNet | None) -> tuple[Tensor, Tensor]:
    """What the net of ``role`` sees of HU ``[n, H, W]``, and where its answer counts, both ``[n, 1, H, W]``.

    For the tumour net that is what the liver net calls liver, as after ``gate``.
    """
    x = windowed(hu, role)
    if liver is None:
        return x, torch.ones_like(x, dtype=torch.bool)
    with torch.no_grad():
        mask = logits_of(liver, windowed(hu, "liver")) > 0
    return x * mask, mask


def logits_of(net: UNet, x: Tensor) -> Tensor:
    """Run the net in BF16, as the CPU engine does where the processor can."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net(x).float()


class Sampler:
    """Chooses the slices of a step: patients by the square root of their slices, one slice in three without liver."""

    def __init__(self, liver: data.Slices, empty: data.Slices, role: str) -> None:
        self.sources = [(liver, _by_group(liver.group))]
        if role == "tumour":
            # half of the slices shall hold a tumour; the rest teaches what a healthy liver looks like
            tumour = (liver.label == 2).flatten(1).any(1).numpy()
            healthy = liver.where(~tumour)
            liver = liver.where(tumour)
            self.sources = [(liver, _by_group(liver.group)), (healthy, _by_group(healthy.group))]
            self.share, self.mirror = 0.5, False
        else:
            self.sources.append((empty, _by_group(empty.group)))
            # slices without liver also come prone or reversed: they have none either way
            self.share, self.mirror = 0.67, True

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """HU and labels ``[n, S, S]`` of ``n`` slices."""
        hu, label = [], []
        for _ in range(n):
            second = rng.random() >= self.share
            slices, p = self.sources[second]
            i = int(rng.choice(len(p), p=p))
            axes = [axis for axis in (0, 1) if second and self.mirror and rng.random() < 0.3]
            hu.append(slices.hu[i].flip(axes))
            label.append(slices.label[i].flip(axes))
        return torch.stack(hu), torch.stack(label)


def _by_group(group: np.ndarray) -> np.ndarray:
    _, inverse, count = np.unique(group, return_inverse=True, return_counts=True)
    p = count[inverse] ** -0.5  # a group of k slices weighs k ** 0.5
    return p / p.sum()


def target_of(label: Tensor, mask: Tensor, role: str) -> Tensor:
    """What the net shall answer, ``[n, 1, H, W]``; a tumour that the liver net missed cannot be asked for."""
    return ((label >= (1 if role == "liver" else 2))[:, None] & mask).float()


@torch.no_grad()
def validate(net: UNet, liver: UNet | None, role: str, subsets: dict[str, data.Slices]) -> dict[str, float]:
    """Dice over each subset as one volume; where nothing is to be found, the share of slices with >100 false pixels."""
    net.eval()
    scores = {}
    for name, slices in subsets.items():
        if role == "tumour" and name == "negatives":
            continue
        both = found = wanted = false_slices = 0
        for hu, label in zip(slices.hu.split(16), slices.label.split(16), strict=True):
            x, mask = net_input(F.avg_pool2d(hu[:, None].float(), 2)[:, 0].round(), role, liver)
            found_here = (logits_of(net, x) > 0) & mask
            wanted_here = (label >= (1 if role == "liver" else 2))[:, None]
            truth = F.avg_pool2d(wanted_here.float(), 2) >= 0.5
            both += int((found_here & truth).sum())
            found += int(found_here.sum())
            wanted += int(truth.sum())
            false_slices += int(((found_here & ~truth).flatten(1).sum(1) > 100).sum())
        scores[f"{name}_dice" if wanted else f"{name}_false"] = (
            2 * both / (found + wanted) if wanted else false_slices / len(slices.hu)
        )
    net.train()
    return scores


def load_net(path: Path) -> tuple[UNet, Settings]:
    """The net of a checkpoint, in evaluation mode."""
    state = torch.load(path, weights_only=True)
    settings = Settings(**state["settings"])
    net = UNet(1, settings.width, settings.depth, settings.dropout)
    net.load_state_dict(state["net"])
    return net.eval().to(memory_format=torch.channels_last), settings


def fingerprint(net: UNet) -> str:
    """SHA-256 of a net's weights."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(settings: Settings, root: Path, out: Path, liver_checkpoint: Path | None, every: int = 500) -> None:
    """Run or resume the training described by ``settings`` in the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "last.pt"
    liver = load_net(liver_checkpoint)[0] if liver_checkpoint else None
    if liver is not None:
        settings = replace(settings, liver=fingerprint(liver))
    positive, empty, validation = data.read(root, 2 * SIZE)
    sampler = Sampler(positive, empty, settings.role)
    del positive, empty

    torch.manual_seed(settings.seed)
    net = UNet(1, settings.width, settings.depth, settings.dropout).to(memory_format=torch.channels_last)
    decay = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=settings.lr,
    )
    step, frequency = 0, 0.05
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if Settings(**state["settings"]) != settings:
            raise SystemExit(
                f"{checkpoint} was made with {state['settings']}; choose another --out or the same settings"
            )
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        step, frequency = state["step"], state["frequency"]

    bar = tqdm(total=settings.steps, initial=step, desc=settings.role, mininterval=5)
    running = 0.0
    while step < settings.steps:
        # every step has its own randomness, so that a resumed run sees what an unbroken one would
        rng = np.random.default_rng((settings.seed, step))
        torch.manual_seed(int(rng.integers(2**62)))
        warm = min(1.0, (step + 1) / 200)
        lr = settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr

        hu, label = sampler.draw(settings.batch, rng)
        hu, label = augment(hu, label, rng, without_liver=0.12 if settings.role == "liver" else 0.0)
        x, mask = net_input(hu, settings.role, liver)
        target = target_of(label, mask, settings.role)
        frequency += 0.01 * (float(target.mean()) - frequency)
        loss = balanced_loss(logits_of(net, x), target, class_weights(frequency))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

        step += 1
        running += 0.02 * (loss.item() - running) if running else loss.item()
        bar.update()
        bar.set_postfix(loss=f"{running:.3f}", refresh=False)
        if step % every == 0 or step == settings.steps:
            scores = validate(net, liver, settings.role, validation)
            bar.write(
                f"step {step}  loss {running:.3f}  " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
            )
            _log(out / "log.csv", {"step": step, "lr": lr, "loss": running, **scores})
            state = {
                "settings": asdict(settings),
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "frequency": frequency,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    bar.close()


def _log(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("role", choices=("liver", "tumour"))
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with lits_slices and negatives"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an interrupted run resumes"
    )
    parser.add_argument("--liver", type=Path, help="checkpoint of the liver net (tumour only)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: those of the shipped net)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.role == "tumour") != (args.liver is not None):
        parser.error("--liver goes with the role tumour, which needs it")
    steps = args.steps or STEPS[args.role]
    settings = Settings(args.role, steps, args.batch, width=args.width, depth=args.depth, seed=args.seed)
    train(settings, args.data, args.out, args.liver)


if __name__ == "__main__":
    main()
