"""Train one of the methods. The loop is `train`, to be read from top to bottom.

    python -m training.train liver  --out runs/liver
    python -m training.train tumour --out runs/tumour --liver runs/liver/last.pt
    python -m training.train one-step|joint --out runs/...
    torchrun --nproc-per-node 2 -m training.train liver --out runs/liver

The run writes ``log.csv``, ``curves.png`` and ``last.pt``; after a kill the same command resumes, on a CPU with the
same result.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean as mean

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from training import data
from training.checkpoint import (
    Settings,
    build,
    diverged,
    fingerprint,
    load_liver,
    read,
    save,
    start_from,
)
from training.curves import log, plot
from training.methods import Method
from training.program import add_options, parser_of, plain_errors
from training.sample import Samples
from training.store import store_sha256
from trtseg.engines.processor import native_bf16
from trtseg.errors import ArgumentError, InputError
from trtseg.io.folders import make_folder
from trtseg.metrics.overlap import overlap


def fastest(device: torch.device) -> str:
    """``bf16`` where the device multiplies it in hardware, as OpenVINO has it too; else ``fp32``."""
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else native_bf16()
    return "bf16" if native else "fp32"


def optimizer_of(settings: Settings, method: nn.Module) -> torch.optim.Optimizer:
    """AdamW, or the paper's SGD with momentum; norms and biases do not decay."""
    decay = [p for p in method.parameters() if p.ndim > 1]
    rest = [p for p in method.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=settings.lr)


def lr_at(settings: Settings, step: int) -> float:
    """Learning rate: for AdamW warm-up and a cosine to zero; for SGD the paper's, a tenth once the loss is balanced."""
    if settings.optimizer == "sgd":
        second = 0 < settings.balance_from * settings.steps <= step
        return settings.lr * (0.1 if second else 1.0)
    warm = min(1.0, (step + 1) / min(200, settings.steps / 10))
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def target(label: Tensor) -> Tensor:
    """Labels ``[n, 2H, 2W]`` on the net's grid ``[n, H, W]``: of four pixels the largest that two of them reach."""
    return sum((F.avg_pool2d((label >= c)[:, None].float(), 2)[:, 0] >= 0.5).to(torch.uint8) for c in (1, 2))


@torch.no_grad()
def validate(method: Method, subsets: dict[str, data.Slices], device: torch.device) -> dict[str, float]:
    """Dice over each subset as one volume; where nothing is to be found, the share of slices with >100 false pixels."""
    method.eval()
    scores = {}
    for name, slices in subsets.items():
        found, wanted = [], []
        for i in range(len(slices)):
            hu, label = (torch.from_numpy(x)[None] for x in slices[i])
            found.append(method.labels(F.avg_pool2d(hu[:, None].float(), 2)[:, 0].round().to(device)).cpu())
            wanted.append(target(label))
        for organ, least in (("liver", 1), ("tumour", 2)):
            is_found, is_wanted = torch.cat(found) >= least, torch.cat(wanted) >= least
            if is_wanted.any():
                scores[f"{name}_{organ}"] = overlap(is_found.numpy(), is_wanted.numpy()).dice
            else:
                scores[f"{name}_false_{organ}"] = float((is_found.flatten(1).sum(1) > 100).float().mean())
    method.train()
    return scores


def train(
    settings: Settings,
    root: Path,
    out: Path,
    liver_checkpoint: Path | None = None,
    start: Path | None = None,
    every: int = 500,
) -> None:
    """Run or resume a training.

    Parameters
    ----------
    settings : Settings
        What the result depends on, besides the checkpoints.
    root, out : Path
        Folder of the slice store, and of the run.
    liver_checkpoint : Path, optional
        Of the liver net, for the method tumour.
    start : Path, optional
        Checkpoint of a run of the same method, whose result this one starts with.
    every : int
        Steps between validations and checkpoints.
    """
    if settings.steps < 1 or every < 1:
        raise ArgumentError(f"steps, every: got {settings.steps}, {every}; expected numbers of 1 or more")
    rank, processes, device = _processes()
    liver = None
    if liver_checkpoint:
        liver = load_liver(liver_checkpoint, settings.size, settings.pixel_mm).to(device)
        settings = replace(settings, liver=fingerprint(liver.nets))
    slices, subsets = data.read(root, 2 * settings.size, settings.without.split())
    if settings.precision == "auto":
        settings = replace(settings, precision=fastest(device))
    settings = replace(settings, store=store_sha256(root))

    torch.manual_seed(settings.seed)
    method = build(settings, liver).to(device)
    optimizer = optimizer_of(settings, method)
    if start:
        start_from(start, settings, method, device)
        settings = replace(settings, start=fingerprint(method.nets))
    averaged = AveragedModel(method, avg_fn=partial(_average, settings.ema), use_buffers=True)
    step, losses = 0, []
    checkpoint = out / "last.pt"
    if checkpoint.exists():
        before, state = read(checkpoint, device)
        if before != settings:
            raise InputError(f"{checkpoint}: {_differences(before, settings)}; choose another --out")
        method.load_state_dict(state["method"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    saved = step
    if settings.compile:
        for net in [*method.nets.values(), *(liver.nets.values() if liver else ())]:
            net.compile()
    model = DistributedDataParallel(method) if processes > 1 else method

    samples = Samples(
        slices,
        settings.method,
        settings.lesions,
        settings.seed,
        paste=settings.paste,
        gallbladders=settings.gallbladders,
        lobes=settings.lobes,
    )
    loader = DataLoader(
        samples,
        batch_size=settings.batch // processes,
        sampler=numbers(settings, step, rank, processes),
        num_workers=1,
        prefetch_factor=4,
    )
    make_folder(out, "--out")  # nothing can be refused any more
    bar = tqdm(
        loader, initial=step, total=settings.steps, desc=settings.method, mininterval=5, disable=rank > 0
    )
    for hu, label in bar:
        torch.manual_seed(settings.seed + 1000003 * step + rank)  # of the dropout
        lr = lr_at(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        balance = settings.balance if step >= settings.balance_from * settings.steps else 0.0

        loss = model(hu.to(device), label.to(device), balance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or not math.isfinite(norm.item()):
            raise diverged(step + 1, losses[-1], saved)
        optimizer.step()
        averaged.update_parameters(method)

        step += 1
        bar.set_postfix(loss=f"{mean(losses[-50:]):.3f}", refresh=False)
        if step % every and step < settings.steps:
            continue
        if processes > 1:
            _check_equal(method)
        if rank == 0:
            result = averaged.module if settings.ema else method
            scores = validate(result, subsets, device)
            bar.write(
                f"step {step}  loss {mean(losses):.3f}  "
                + "  ".join(f"{k} {v:.4f}" for k, v in scores.items())
            )
            state = {
                "result": result.nets.state_dict(),
                "method": method.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            save(checkpoint, settings, state)
            saved = step
            log(out / "log.csv", {"step": step, "lr": lr, "loss": mean(losses), **scores})
            losses.clear()
            plot(out / "log.csv", out / "curves.png")
    if processes > 1:
        dist.destroy_process_group()


def _average(decay: float, average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """Exponential moving average that forgets the first steps: its decay rises to ``decay``."""
    decay = min(decay, (1 + int(count)) / (10 + int(count)))
    return value + decay * (average - value)


def numbers(settings: Settings, step: int, rank: int = 0, processes: int = 1) -> range:
    """The samples that a process sees from ``step`` on: every ``processes``-th of each batch."""
    if settings.batch % processes:
        raise ArgumentError(
            f"batch: got {settings.batch} for {processes} processes; it must be a multiple of them"
        )
    return range(step * settings.batch + rank, settings.steps * settings.batch, processes)


def _processes() -> tuple[int, int, torch.device]:
    """Rank, number of processes and device: as torchrun says, or alone."""
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if processes > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    return rank, processes, device


def _check_equal(method: Method) -> None:
    """Fail where the processes no longer have the same weights: each would train a net of its own."""
    digest = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in method.parameters()))
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, digest.hexdigest())
    if len(set(digests)) > 1:
        raise RuntimeError("the processes' weights differ; their gradients are not averaged")


def _differences(before: Settings, settings: Settings) -> str:
    old, now = asdict(before), asdict(settings)
    return "made with " + ", ".join(f"{k} {old[k]!r}, not {v!r}" for k, v in now.items() if old[k] != v)


@plain_errors()
def main() -> None:
    """Parse the command line and train."""
    parser = parser_of(__doc__)
    parser.add_argument("method", choices=("liver", "tumour", "one-step", "joint"))
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("runs/store"),
        help="store of training.prepare (runs/store)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; an interrupted run resumes"
    )
    parser.add_argument(
        "--liver", dest="checkpoint", type=Path, help="checkpoint of the liver net (tumour only)"
    )
    parser.add_argument("--start", type=Path, help="checkpoint to start with, of a run of the same method")
    parser.add_argument(
        "--every", type=int, default=500, help="steps between validations and checkpoints (500)"
    )
    add_options(parser, Settings)
    args = vars(parser.parse_args())
    root, out, checkpoint, start, every = (
        args.pop(k) for k in ("data", "out", "checkpoint", "start", "every")
    )
    if (args["method"] == "tumour") != (checkpoint is not None):
        parser.error("--liver goes with the method tumour, which needs it")
    train(Settings(**args), root, out, checkpoint, start, every)


if __name__ == "__main__":
    main()
