"""What a run depends on, and the checkpoint that it leaves."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.losses import OVERLAPS, Loss
from training.methods import Joint, Liver, Method, OneStep, Tumour
from training.program import AT_LEAST_0, AT_LEAST_1, SHARE, check_options, option
from training.unet import UNet
from trtseg.errors import ArgumentError, InputError
from trtseg.io.atomic import atomic


@dataclass(frozen=True)
class Settings:
    """What a run depends on; stored in the checkpoint and checked when it resumes."""

    method: str
    # a checkpoint of no step holds what a run starts with
    steps: int = option(4000, "steps of the whole run", AT_LEAST_0)
    batch: int = option(8, "slices in a step, over all processes", AT_LEAST_1)
    size: int = option(256, "pixels of a side of the net's grid", AT_LEAST_1)
    width: int = option(16, "channels of the first level, doubled at each one below", AT_LEAST_1)
    depth: int = option(4, "levels below the first", AT_LEAST_1)
    stem: int = option(0, "channels of a first convolution with stride 2; 0: none", AT_LEAST_0)
    dropout: float = option(0.1, "share of the channels dropped in the expanding path", SHARE)
    optimizer: str = option("adamw", "AdamW with warm-up and cosine, or the paper's SGD", ("adamw", "sgd"))
    lr: float = option(2e-3, "learning rate at its highest", AT_LEAST_0)
    weight_decay: float = option(1e-2, "weight decay", AT_LEAST_0)
    balance: float = option(0.5, "exponent of the class weights; 0: no balance", AT_LEAST_0)
    balance_from: float = option(0.0, "share of the steps that run before the loss is balanced", SHARE)
    overlap: str = option("dice", "overlap term beside the cross-entropy", OVERLAPS)
    gate: str = option(
        "straight-through",
        "how the tumour net's loss reaches the liver net; joint only",
        ("straight-through", "soft", "hard"),
    )
    grow: int = option(8, "pixels by which the mask of a tumour net grows at most; tumour only", AT_LEAST_0)
    c1: float = option(1.0, "weight of the liver net's loss; joint only", AT_LEAST_0)
    c2: float = option(1.0, "weight of the tumour net's loss; joint only", AT_LEAST_0)
    ema: float = option(
        0.998, "decay of the averaged weights, which are the result; 0: the last weights", SHARE
    )
    lesions: float = option(0.5, "share of livers that get synthetic lesions", SHARE)
    paste: float = option(0.0, "share of livers that get a lesion of another slice", SHARE)
    gallbladders: float = option(
        0.0, "share of livers that get one beside them; tumour only, others always have some", SHARE
    )
    lobes: float = option(0.0, "share of livers whose left lobe is let hang down into slices below it", SHARE)
    precision: str = option(
        "auto", "of the nets; auto: BF16 where that is faster than FP32", ("auto", "bf16", "fp32")
    )
    without: str = option(
        "", "patient groups left out of training beside those of the validation, a space between them"
    )
    seed: int = option(0, "of weights and samples", (0, 2**32 - 1))
    compile: bool = option(True, "compile the nets before the first step, which takes minutes on a CPU")
    store: str = ""  # SHA-256 of the slice store's manifest
    liver: str = ""  # SHA-256 of the liver net that a tumour net is trained behind
    start: str = ""  # SHA-256 of the nets whose weights this run starts with
    teachers: str = ""  # SHA-256 of the tumour nets that gave masks to slices with cells
    distilled: str = ""  # SHA-256 of the nets that this run imitates
    pixel_mm: float = 0.0  # of a kit's pixels, which lie around the body; 0: nets see the field of view

    def __post_init__(self) -> None:
        check_options(self)


def build(settings: Settings, liver: Liver | None = None) -> Method:
    """The method with fresh nets; all nets run in the precision of the settings, where auto is FP32."""
    check_size(settings.size, settings)
    method = _fresh(settings, liver)
    method.compute_in(torch.bfloat16 if settings.precision == "bf16" else torch.float32)
    return method


def check_size(size: int, settings: Settings) -> None:
    """Refuse rows and columns that the nets of these settings cannot halve as often as they do."""
    step = 2 ** (settings.depth + bool(settings.stem))
    if size < step or size % step:
        raise ArgumentError(
            f"size: got {size}; expected a multiple of {step}, for nets of depth {settings.depth}"
            + (" and a stem" if settings.stem else "")
        )


def _fresh(settings: Settings, liver: Liver | None) -> Method:

    def net(classes: int) -> UNet:
        return UNet(classes, settings.width, settings.depth, settings.dropout, settings.stem)

    def loss(classes: int) -> Loss:
        return Loss(classes, settings.balance, settings.overlap)

    if settings.method == "one-step":
        return OneStep(net(3), loss(3))
    if settings.method == "liver":
        return Liver(net(1), loss(2))
    if settings.method == "tumour":
        assert liver is not None
        return Tumour(net(1), loss(2), liver, settings.grow)
    if settings.method == "joint":
        return Joint(net(1), net(1), (loss(2), loss(2)), settings.gate, (settings.c1, settings.c2))
    raise ValueError(f"method: got {settings.method!r}; expected one-step, liver, tumour or joint")


def read(path: Path, device: torch.device | str = "cpu") -> tuple[Settings, dict[str, Any]]:
    """Settings and state of a checkpoint; an `InputError` that names the file where it is none."""
    try:
        state = torch.load(path, weights_only=True, map_location=device)
        stored = dict(state["settings"])
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; expected a checkpoint of training.train"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged, or no checkpoint of training.train") from None
    if unknown := stored.keys() - {field.name for field in fields(Settings)}:
        raise InputError(
            f"{path}: was made with {', '.join(sorted(unknown))}, which this version does not know; train it again"
        )
    return Settings(**stored), state


def load(path: Path, liver: Path | None = None) -> tuple[Method, Settings]:
    """The method of a checkpoint with the weights that are its result, in evaluation mode.

    ``liver`` is the checkpoint of the liver net, for a tumour net; it must be the one that it was trained behind.
    """
    settings, state = read(path)
    behind = load_liver(liver, settings.size, settings.pixel_mm) if liver else None
    if settings.method == "tumour" and (behind is None or fingerprint(behind.nets) != settings.liver):
        than = f"another liver net than {liver}" if liver else "a liver net"
        raise InputError(f"{path}: was trained behind {than}; name that one's checkpoint")
    method = build(settings, behind)
    method.nets.load_state_dict(state["result"])
    return method.eval(), settings


def load_liver(path: Path, size: int, pixel_mm: float) -> Liver:
    """The liver net of a checkpoint, to put a tumour net of that many rows, and of such pixels, behind it."""
    method, settings = load(path)
    if not isinstance(method, Liver):
        raise InputError(f"{path}: is of the method {settings.method}; expected liver")
    if settings.size != size:
        raise InputError(
            f"{path}: is a net of {settings.size}x{settings.size} pixels; expected {size}x{size}, as of the tumour net"
        )
    if settings.pixel_mm != pixel_mm:
        raise InputError(
            f"{path}: is a net of {said_pixels(settings.pixel_mm)}; expected {said_pixels(pixel_mm)}, as of the tumour "
            "net: train both on one store, or both from kits of one size (checkpoints of old versions do not say it)"
        )
    return method


def said_pixels(mm: float) -> str:
    """Say what a net's pixels are; see ``Settings.pixel_mm``."""
    return f"pixels of {mm:g} mm around the body" if mm else "pixels over the field of view"


def start_from(path: Path, settings: Settings, method: Method, device: torch.device) -> None:
    """Give the nets of a method the weights that are the result of another run."""
    other, state = read(path, device)
    for name in ("method", "width", "depth", "stem"):
        if getattr(other, name) != getattr(settings, name):
            raise InputError(
                f"{path}: has {name} {getattr(other, name)!r}, but this run {getattr(settings, name)!r}; "
                "a run starts with the weights of a like one"
            )
    method.nets.load_state_dict(state["result"])


def save(path: Path, settings: Settings, state: dict[str, Any]) -> None:
    """Write a checkpoint, complete or not at all; ``state`` holds at least ``result``, the nets' weights."""
    buffer = io.BytesIO()  # what torch raises where a file cannot be written says nothing of the reason
    torch.save({"settings": asdict(settings), **state}, buffer)
    with atomic(path) as (temporary,):
        # Not its buffer: where that cannot be written, Python before 3.12.2 crashes when it collects garbage.
        temporary.write_bytes(buffer.getvalue())


def diverged(step: int, loss: float, saved: int) -> ArgumentError:
    """What to raise for a run that cannot go on, since its loss or its weights are no numbers any more."""
    kept = f"last.pt is that of step {saved}" if saved else "nothing was saved"
    lost = f"the loss is {loss:g}" if not math.isfinite(loss) else "the weights are not finite"
    return ArgumentError(f"step {step}: {lost}; try a lower --lr; {kept}")


def fingerprint(nets: nn.Module) -> str:
    """SHA-256 of the weights."""
    digest = hashlib.sha256()
    for name, value in nets.state_dict().items():
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
