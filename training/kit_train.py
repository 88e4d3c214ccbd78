"""Train a liver or a tumour net from a training kit, for so many seconds; all work but the loop is the device's.

    python -m training.kit_train liver  runs/kit.zip --seconds 140 --out runs/gpu/liver
    python -m training.kit_train tumour runs/kit.zip --seconds 140 --out runs/gpu/tumour --liver runs/gpu/liver/last.pt

``--start`` begins with the weights of another run or, with the name or folder of an exported model, with its own.
``--distil`` lets the net imitate another one besides, or the mean of several.
The run writes ``last.pt``, which ``training.export`` and ``training.kit_score`` read, ``log.csv``, and the state from
which the same command resumes a run that was killed; the time that was spent counts.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from training import batch, kit_score, pseudo
from training import kit as kits
from training.checkpoint import Settings, build, diverged, fingerprint, load_liver, said_pixels, save
from training.curves import log
from training.methods import Method
from training.program import add_options, parser_of, plain_errors
from training.trained import pixels_of, trained_net
from training.trainer import Run, Trainer, settings_of
from training.unet import UNet
from trtseg.errors import InputError
from trtseg.io.folders import make_folder


def train(
    role: str,
    path: Path,
    out: Path,
    settings: Settings,
    run: Run,
    *,
    liver: Path | None = None,
    start: Path | str | None = None,
    state: Path | None = None,
    teachers: Sequence[str] = (),
    distil: Sequence[Path | str] = (),
) -> None:
    """Run or resume a training.

    Parameters
    ----------
    role : str
        ``liver`` or ``tumour``.
    path, out : Path
        The kit, and the folder of the run.
    settings, run : Settings, Run
    liver : Path, optional
        Checkpoint of the liver net, for a tumour net.
    start : Path or str, optional
        Checkpoint or model whose weights the run starts with.
    state : Path, optional
        File of the state of the run, ``out/resume.pt`` if not given.
    teachers : sequence of str
        Checkpoints or models whose tumour nets give masks to slices that have only cells (`training.pseudo`).
    distil : sequence of Path or str
        Checkpoints or models whose mean probabilities the net imitates besides (`training.distil`).
    """
    state = state or out / "resume.pt"
    if not state.exists() and (out / "last.pt").exists():
        raise InputError(
            f"{out / 'last.pt'}: is of another run, since there is no {state} to resume; "
            "remove it, or choose another --out"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    began = time.perf_counter()
    kit = kits.read(path)
    settings = replace(settings, pixel_mm=kits.pixel_mm(kit, settings.size))
    behind = load_liver(liver, settings.size, settings.pixel_mm) if liver else None
    if behind:
        settings = replace(settings, liver=fingerprint(behind.nets))
    if start:
        settings = replace(settings, start=fingerprint(trained_net(start, role)))
    for name in (*teachers, *distil):
        if (own := pixels_of(name, role)) != settings.pixel_mm:
            print(
                f"warning: {name} has learnt on {said_pixels(own)}, and this run sees {said_pixels(settings.pixel_mm)}",
                file=sys.stderr,
            )
    nets = [_teacher(name, role, device) for name in teachers]
    imitated = [_teacher(name, role, device) for name in distil]
    settings = replace(
        settings,
        store=kit.sha256,
        teachers=pseudo.names(nets),
        distilled="+".join(map(fingerprint, imitated)),
    )
    torch.manual_seed(settings.seed)
    method = build(settings, behind)
    _report(f"read {len(kit)} slices in {time.perf_counter() - began:.1f} s, device {device}")

    rows = _rows(kit, role, "train")
    store = batch.DeviceKit.of(kit, rows, device)
    if nets:
        store, count = pseudo.with_masks(store, nets)
        _report("masks of teachers: " + ", ".join(f"{n} {name}" for name, n in count.items()))
    p = torch.from_numpy(batch.weights(kit, rows, role).astype(np.float32)).to(device)
    held = _rows(kit, role, "validation")
    held_store = batch.DeviceKit.of(kit, held, device)
    kit_score.to_device(method, device)
    trainer = Trainer(role, method, settings, run, store, p, imitated)
    make_folder(out, "--out")

    def save_result(result: Method) -> None:
        reached = replace(settings, steps=trainer.step)
        save(out / "last.pt", reached, {"result": result.nets.state_dict()})

    if state.exists():
        trainer.resume(state)
        save_result(trainer.result())  # a kill may have come between both files
        _report(f"resumed at step {trainer.step}, {trainer.elapsed:.0f} s")
    elif start:
        trainer.start(str(start))
    _report(
        f"{len(rows)} slices train, {len(held)} validate, ready after {time.perf_counter() - began:.1f} s"
    )

    def keep(progress: float) -> None:
        loss = trainer.mean_loss()
        if trainer.step and not (math.isfinite(loss) and trainer.is_finite()):
            raise diverged(trainer.step, loss, trainer.saved)
        result = trainer.result()
        scores = kit_score.score(kit, held, held_store, result, settings.size)
        row = {
            "step": trainer.step,
            "seconds": round(trainer.elapsed, 1),
            "loss": loss,
            **scores,
        }
        _report(
            f"{progress:5.1%} step {trainer.step} {trainer.elapsed:.0f} s "
            f"{trainer.step * run.batch / max(trainer.elapsed, 1e-9):.0f} slices/s "
            f"loss {loss:.4f}  {kit_score.text(scores)}"
        )
        trainer.save(state)
        save_result(result)
        log(out / "log.csv", row)

    if start and not trainer.step:
        keep(0.0)  # what the run starts with
    for progress in trainer.steps():
        if progress == 1 or trainer.due():
            keep(progress)
            trainer.last_saved = time.perf_counter() - trainer.began
    if device.type == "cuda":
        _report(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    _report(f"finished after {time.perf_counter() - began:.1f} s")


def _teacher(source: Path | str, role: str, device: torch.device) -> UNet:
    return trained_net(source, role).to(device, memory_format=torch.channels_last)


def _rows(kit: kits.Kit, role: str, split: str) -> np.ndarray:
    """Rows of a kit that a net trains or validates on; the tumour net sees only slices with liver."""
    wanted = kit.split == split
    return np.flatnonzero(wanted & kit.has_liver if role == "tumour" and split == "train" else wanted)


def _report(line: str) -> None:
    print(line, flush=True)


@plain_errors()
def main() -> None:
    """Parse the command line and train."""
    parser = parser_of(__doc__)
    parser.add_argument("role", choices=("liver", "tumour"))
    parser.add_argument("kit", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--liver", type=Path, help="checkpoint of the liver net (tumour only)")
    parser.add_argument("--start", help="checkpoint, or name or folder of an exported model")
    parser.add_argument(
        "--distil",
        action="append",
        default=[],
        help="checkpoint or model whose net this one imitates besides (repeat: the mean of several)",
    )
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        help="checkpoint or model for self-training (tumour only; repeat)",
    )
    parser.add_argument("--state", type=Path, help="file to resume from, OUT/resume.pt if not given")
    add_options(parser, Settings, ("size", "width", "depth", "stem", "dropout", "balance", "seed"))
    add_options(parser, Run)
    args = vars(parser.parse_args())
    chosen = {field.name: args.pop(field.name) for field in fields(Run)}
    role, path, out = args.pop("role"), args.pop("kit"), args.pop("out")
    files = {name: args.pop(name) for name in ("liver", "start", "state", "distil")}
    files["teachers"] = args.pop("teacher")
    if (role == "tumour") != (files["liver"] is not None):
        parser.error("--liver goes with tumour, which needs it")
    if files["teachers"] and role != "tumour":
        parser.error("--teacher goes with tumour")
    run = Run(**chosen)
    train(role, path, out, settings_of(role, run, **args), run, **files)


if __name__ == "__main__":
    main()
