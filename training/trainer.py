"""The loop of a training from a kit: a net, its averaged weights, and the time that was spent."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import appearance, batch, kit_score
from training.checkpoint import Settings, build, read, save, start_from
from training.distil import distilled
from training.losses import OVERLAPS, Loss
from training.methods import Method, Tumour, windowed
from training.program import AT_LEAST_0, AT_LEAST_1, SHARE, check_options, option
from training.replay import Replayed
from training.trained import trained_net
from training.unet import UNet
from training.weak import TumourLoss, liver_loss
from trtseg.errors import InputError
from trtseg.io.folders import make_folder

#: Batches that are drawn and changed together: on a GPU hundreds of small operations then cost as much as for one.
AHEAD = {"cuda": 8, "cpu": 1}
#: Slices with whose statistics the batch norms of an exported net are made anew.
UNFOLD_SLICES = 128


@dataclass(frozen=True)
class Run:
    """How a run goes, besides the `training.checkpoint.Settings` that its checkpoint holds."""

    seconds: float = option(
        120.0, "time for all, validation included; reading the kit comes on top", (0.001, math.inf)
    )
    steps: int = option(0, "above 0: so many steps, however long they take", AT_LEAST_0)
    batch: int = option(64, "slices in a step", AT_LEAST_1)
    lr: float = option(2e-3, "learning rate at its highest", AT_LEAST_0)
    warm_up: float = option(0.03, "share of the time in which the rate rises", SHARE)
    ema: float = option(0.995, "decay of the averaged weights, which are the result", SHARE)
    every: float = option(
        20.0, "seconds from the end of a validation, with a checkpoint, to the next", AT_LEAST_0
    )
    lesions: float = option(0.3, "share of slices that get synthetic lesions", SHARE)
    gallbladders: float = option(0.15, "share that get something like a gallbladder beside the liver", SHARE)
    masses: float = option(0.0, "share that get a mass beside the liver; liver net only", SHARE)
    bulging: float = option(0.0, "share that get a tumour bulging out of the liver; liver net only", SHARE)
    other_livers: float = option(0.15, "share that get a darker or brighter liver; liver net only", SHARE)
    hidden: float = option(0.08, "share whose liver is painted over; liver net only", SHARE)
    cut: float = option(0.12, "share of which a part is blanked; liver net only", SHARE)
    grow: int = option(6, "pixels by which the mask of a tumour net grows at most", AT_LEAST_0)
    own_mask: float = option(
        0.5, "share of slices that a tumour net sees in the mask of its liver net, not in the true one", SHARE
    )
    negative: float = option(0.5, "weight of the cells without a tumour", AT_LEAST_0)
    positive: float = option(0.1, "weight of the cells with one", AT_LEAST_0)
    imitation: float = option(
        1.0, "weight of what the nets of --distil say, where there are some", AT_LEAST_0
    )
    overlap: str = option("dice", "overlap term beside the cross-entropy", OVERLAPS)

    def __post_init__(self) -> None:
        check_options(self)


def settings_of(role: str, run: Run, **others: Any) -> Settings:
    """What the checkpoint says of a run; the nets run in BF16 on a GPU, and in FP32 on a CPU."""
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    own = {name: getattr(run, name) for name in ("batch", "lr", "ema", "overlap")}
    return Settings(role, precision=precision, **own, **others)


class Trainer:
    """A net in training: weights, averages, optimizer, and the time that was spent."""

    def __init__(
        self,
        role: str,
        method: Method,
        settings: Settings,
        run: Run,
        store: batch.DeviceKit,
        p: Tensor,
        imitated: Sequence[UNet] = (),
    ) -> None:
        self.role, self.method, self.settings, self.run = role, method, settings, run
        self.store, self.p, self.imitated = store, p, imitated
        self.device = store.image.device
        self.net = _net(method, role)
        self.pixels = Loss(2, settings.balance, run.overlap).to(self.device)
        self.loss = self.pixels if role == "liver" else TumourLoss(self.pixels, run.negative, run.positive)
        decay = [w for w in self.net.parameters() if w.ndim > 1]
        rest = [w for w in self.net.parameters() if w.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=run.lr,
            fused=self.device.type == "cuda",
        )
        self.average = [t.clone() for t in _floats(self.net)]
        self.g = torch.Generator(self.device)
        self.ahead = AHEAD[self.device.type]
        self._drawn: tuple[int, tuple[batch.Batch, Tensor]] | None = None
        self.replayed = Replayed() if self.device.type == "cuda" else None
        self.step, self.saved = 0, 0  # now, and when the state was saved last
        self.elapsed, self.last_saved, self.began = 0.0, 0.0, 0.0
        self.losses: list[Tensor] = []

    def steps(self) -> Iterator[float]:
        """Train, and after each step give the share of the run that is done; the clock runs on in between."""
        self.began = time.perf_counter() - self.elapsed
        progress = self._progress()
        while progress < 1:
            self._train_step(progress)
            if self.step % 10 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()  # so that the clock is that of the device
            self.elapsed = time.perf_counter() - self.began
            progress = self._progress()
            yield progress

    def _progress(self) -> float:
        return self.step / self.run.steps if self.run.steps else min(1.0, self.elapsed / self.run.seconds)

    def _train_step(self, progress: float) -> None:
        warm = min(1.0, (progress + 1e-4) / max(self.run.warm_up, 1e-4))
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))
        b, mask = self._batch()
        torch.manual_seed(self._seed(self.step))  # of the dropout
        self.method.train()
        loss = self.replayed(self._backward, *b, mask) if self.replayed else self._backward(*b, mask)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.run.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, _floats(self.net), 1 - decay)
        self.step += 1
        self.losses.append(loss)

    def _backward(self, *tensors: Tensor) -> Tensor:
        """The loss of a batch and its mask; the weights' gradients are those of it alone."""
        *b, mask = tensors
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch.Batch(*b), mask)
        loss.backward()
        return loss.detach()

    def _seed(self, number: int) -> int:
        return self.settings.seed * 1_000_003 + number

    def _batch(self) -> tuple[batch.Batch, Tensor]:
        """The batch of this step, out of those that were drawn together, and its mask."""
        group, at = divmod(self.step, self.ahead)
        if self._drawn is None or self._drawn[0] != group:
            self._drawn = None  # so that the memory of the last group serves this one
            self.g.manual_seed(self._seed(group))
            self._drawn = group, self.samples()
        b, mask = self._drawn[1]
        own = slice(at * self.run.batch, (at + 1) * self.run.batch)
        return batch.Batch(*(values[own] for values in b)), mask[own]

    @torch.no_grad()
    def samples(self) -> tuple[batch.Batch, Tensor]:
        """`ahead` batches, and bool ``[n, H, W]``: the mask that a tumour net is shown, or where a liver net imitates.

        What the nets that it imitates say of a mass beside the liver is not asked: they may take it for liver, and a
        tumour that bulges out of the liver for none.
        """
        run, g, size = self.run, self.g, self.settings.size
        b = batch.draw(self.store, self.p, self.ahead * run.batch, g, size)
        b = b._replace(hu=appearance.unclip(b.hu, self.store.lowest_hu[b.row], g))
        if self.role == "liver":
            b = appearance.other_liver(b, run.other_livers, g)
        b = appearance.lesions(b, run.lesions, g)
        b = appearance.gallbladders(b, run.gallbladders, g)
        if self.role == "liver":
            mass = tumour = torch.zeros_like(b.hu, dtype=torch.bool)
            if run.masses:
                b, mass = appearance.masses(b, run.masses, g)
            if run.bulging:
                b, tumour = appearance.bulging(b, run.bulging, g)
            b = appearance.without_liver(b, run.hidden, g)
        b = b._replace(hu=appearance.scanner(b.hu, g))
        if self.role == "liver":
            return appearance.cut(b, run.cut, g), ~(mass | tumour)
        return b, self._mask(b)

    def _mask(self, b: batch.Batch) -> Tensor:
        """The true liver of some slices, that of the liver net for the others, and each a bit larger or smaller."""
        assert isinstance(self.method, Tumour)
        mask = (b.label > 0).float().unflatten(0, (self.ahead, -1))  # [batches, slices, H, W]
        own = round(mask.shape[1] * self.run.own_mask)
        if own:
            hu = b.hu.unflatten(0, (self.ahead, -1))[:, :own].flatten(0, 1)
            mask[:, :own] = (self.method.liver[0].probabilities(hu)[0] > 0.5).view_as(mask[:, :own])
        # interleaved, so that both kinds of masks are in each part
        parts = [part[i::4] for part in mask for i in range(4)]
        seed = torch.Generator().manual_seed(self.step // self.ahead)
        radii = torch.randint(-1, self.run.grow + 1, (len(parts),), generator=seed)
        for part, r in zip(parts, radii.tolist(), strict=True):
            part.copy_(1 - appearance.grown(1 - part, 1) if r < 0 else appearance.grown(part, r))
        return mask.flatten(0, 1) > 0

    def _loss(self, b: batch.Batch, mask: Tensor) -> Tensor:
        if self.role == "liver":
            x = windowed(b.hu, "liver")
            logits = self.method.logits("liver", x)
            return liver_loss(self.pixels, logits, b.label) + self._distilled(x, logits, mask)
        x = windowed(b.hu, "tumour") * mask[:, None]
        logits = self.method.logits("tumour", x)
        expected = self.store.cell_area[b.row] * b.area[:, None]
        cells = (b.cell, self.store.cell_flag[b.row], expected)
        slices = (self.store.tumour_known[b.row], self.store.weak[b.row])
        return self.loss(logits, b.label, mask, slices, cells) + self._distilled(x, logits, mask)

    def _distilled(self, x: Tensor, logits: Tensor, where: Tensor | None) -> Tensor | float:
        if not self.imitated:
            return 0.0
        precision = self.method.precision
        with torch.no_grad(), torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
            p = torch.stack([torch.sigmoid(net(x).float()) for net in self.imitated]).mean(0)
        return self.run.imitation * distilled(self.pixels, logits, p, where)

    def due(self) -> bool:
        """Whether it is time to validate."""
        return self.elapsed - self.last_saved >= self.run.every

    def mean_loss(self) -> float:
        """Mean loss since this was asked last."""
        mean = float(torch.stack(self.losses).mean()) if self.losses else math.nan
        self.losses.clear()
        return mean

    def is_finite(self) -> bool:
        """Whether all averaged weights are numbers."""
        return all(bool(t.isfinite().all()) for t in self.average)

    def result(self) -> Method:
        """The method with the averaged weights, in evaluation."""
        behind = self.method.liver[0] if isinstance(self.method, Tumour) else None
        method = build(self.settings, behind)
        kit_score.to_device(method, self.device)
        self.average_into(_net(method, self.role))
        return method.eval()

    def average_into(self, net: nn.Module) -> None:
        """Give a net of this shape the averaged weights."""
        for target, value in zip(_floats(net), self.average, strict=True):
            target.copy_(value)

    def start(self, source: str) -> None:
        """Take the weights of a checkpoint, or those of the net of an exported model."""
        if source.endswith(".pt"):
            start_from(Path(source), self.settings, self.method, self.device)
        else:
            self.net.load_state_dict(self._unfolded(source))
        self.average = [t.clone() for t in _floats(self.net)]

    def _unfolded(self, model: str) -> dict[str, Tensor]:
        """The state with batch norms of the net of an exported model, their statistics those of samples of the run."""
        from training.unfold import unfold

        net = trained_net(model, self.role)
        if net.sizes != self.net.sizes:
            raise InputError(f"start: {model} has a net of {net.sizes}, but this run one of {self.net.sizes}")
        seen = []
        while sum(map(len, seen)) < UNFOLD_SLICES:
            self.g.manual_seed(len(seen))
            b, mask = self.samples()
            x = windowed(b.hu, self.role)
            seen.append(x * mask[:, None] if self.role == "tumour" else x)
        net.to(self.device)
        return unfold(net, lambda: [net(x) for part in seen for x in part.split(16)])

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "run": asdict(self.run),
        }
        make_folder(path.parent, "--state")
        save(path, self.settings, state)
        self.saved = self.step

    def resume(self, path: Path) -> None:
        """Go on where a run of the same settings was; its length may be another one."""
        settings, state = read(path, self.device)
        if "run" not in state:
            raise InputError(f"{path}: is the result of a run; expected its state, resume.pt")
        pairs = (asdict(settings), asdict(self.settings)), (state["run"], asdict(self.run))
        other = {k for before, now in pairs for k, v in now.items() if before.get(k) != v}
        # the size of the pixels is that of the kit, which is compared; older states do not have it
        if other := sorted(other - {"seconds", "steps", "every", "pixel_mm"}):
            raise InputError(
                f"{path}: is of a run with other settings ({', '.join(other)}); choose another --out or --state"
            )
        self.net.load_state_dict(state["net"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.saved = self.step
        self.last_saved = self.elapsed


def _net(method: Method, role: str) -> nn.Module:
    """The net of a role, or both nets of the joint method."""
    return method.nets if role == "joint" else method.nets[role]


def _floats(net: nn.Module) -> list[Tensor]:
    """What is averaged of a net: its weights, and the statistics of its batch norms."""
    return [t for t in net.state_dict().values() if t.dtype.is_floating_point]
