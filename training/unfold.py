"""Turn an exported model back into checkpoints, to train on: the shipped model on your own data, for one.

    python -m training.unfold default --data STORE --out runs/shipped
    python -m training.train liver --start runs/shipped/liver/last.pt --width 24 --depth 3 --stem 16 --data STORE \
      --lr 0.0004 --out runs/mine/liver

An exported net has its batch norms folded into its convolutions, and would not train without them. They are put back
with the statistics of training samples of ``STORE`` and the scale and shift that undo them, so that in evaluation the
net gives the same logits as before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from training import data
from training.checkpoint import Settings, build, fingerprint, load_liver, save
from training.methods import WINDOW
from training.program import parser_of, plain_errors
from training.sample import Samples
from training.unet import UNet, shaped, weights
from trtseg import models
from trtseg.engines.precision import FP32
from trtseg.errors import ArgumentError, ModelError

#: Number of training samples for the statistics.
SAMPLES = 96
EPS = nn.BatchNorm2d(1).eps


def folded_net(tensors: dict[str, Tensor]) -> UNet:
    """The net of these tensors, without batch norm, as wide and deep as they are."""
    try:
        net = shaped(tensors)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"model: is no net that training.export wrote ({error})") from None
    return net.eval()


@torch.no_grad()
def unfold(net: UNet, run: Callable[[], object]) -> dict[str, Tensor]:
    """State of a `UNet` with batch norms that gives the logits of ``net``, which has none.

    Parameters
    ----------
    net : UNet
        As `training.unet.folded` makes it.
    run : callable
        Runs ``net`` on samples. The statistics are of its convolutions' outputs in these calls.
    """
    state = {name: value for name, value in net.state_dict().items() if name.startswith(("up.", "head."))}
    convolutions = {
        f"{part}.{level}.{place}": block[place]
        for part in ("down", "merge")
        for level, block in enumerate(getattr(net, part))
        for place in (0, 3)
    }
    if isinstance(net.stem, nn.Sequential):
        convolutions["stem.0"] = net.stem[0]
    sums = {
        name: torch.zeros(3, conv.out_channels, dtype=torch.float64, device=conv.weight.device)
        for name, conv in convolutions.items()
    }

    def count(total: Tensor, out: Tensor) -> None:
        x = out.double()
        total += torch.stack(
            [torch.full_like(total[0], x[:, 0].numel()), x.sum((0, 2, 3)), (x * x).sum((0, 2, 3))]
        )

    hooks = [
        conv.register_forward_hook(lambda _, __, out, name=name: count(sums[name], out))
        for name, conv in convolutions.items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    for name, conv in convolutions.items():
        number, total, squares = sums[name]
        mean = total / number
        variance = (squares / number - mean**2).clamp_min(1e-6)
        block, place = name.rsplit(".", 1)
        norm = f"{block}.{int(place) + 1}"
        state |= {
            f"{name}.weight": conv.weight,
            # the convolution in training has no bias, so its part of the mean is taken off
            f"{norm}.running_mean": (mean - conv.bias.double()).float(),
            f"{norm}.running_var": variance.float(),
            f"{norm}.weight": (variance + EPS).sqrt().float(),
            f"{norm}.bias": mean.float(),
            f"{norm}.num_batches_tracked": torch.tensor(1),
        }
    return state


def unfold_model(model: str | Path, store: Path, out: Path) -> list[Path]:
    """Write a checkpoint a net, ``out/ROLE/last.pt``, and return their paths in the order of the cascade.

    An `ArgumentError` is raised where one of them is that of a run: its weights would be lost.
    """
    files = models.find(model)
    for spec in files.spec.nets:
        if (out / spec.role / "log.csv").exists():
            raise ArgumentError(
                f"--out: {out / spec.role} is the folder of a run, whose weights would be lost; choose another --out"
            )
    paths: list[Path] = []
    for spec in files.spec.nets:
        if tuple(spec.window) != WINDOW[spec.role]:
            raise ModelError(
                f"model: its {spec.role} net has the window {spec.window}; here it is trained with {WINDOW[spec.role]}"
            )
        net = folded_net(weights(files.read(FP32.file(spec.role))))
        pixel_mm = spec.pixel_mm or 0.0  # as the net was exported: else it would see slices placed otherwise
        settings = Settings(spec.role, size=spec.size[0], precision="fp32", pixel_mm=pixel_mm, **net.sizes)
        liver = load_liver(paths[0], settings.size, pixel_mm) if spec.role == "tumour" else None
        if liver:
            settings = replace(settings, liver=fingerprint(liver.nets))
        slices, _ = data.read(store, 2 * settings.size)
        samples = Samples(slices, settings.method, settings.lesions, settings.seed)
        method = build(settings, liver).eval()
        method.nets[spec.role] = net
        state = unfold(
            net, lambda m=method, s=samples: [m.probabilities(s[i][0][None]) for i in range(SAMPLES)]
        )
        method = build(settings, liver)
        method.nets[spec.role].load_state_dict(state)
        path = out / spec.role / "last.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, settings, {"result": method.nets.state_dict()})
        paths.append(path)
    return paths


@plain_errors()
def main() -> None:
    """Parse the command line, and write a checkpoint a net."""
    parser = parser_of(__doc__)
    parser.add_argument("model", help="name or folder of an exported model")
    parser.add_argument("--data", type=Path, required=True, help="store of training.prepare")
    parser.add_argument("--out", type=Path, required=True, help="folder; of each net ROLE/last.pt is written")
    args = parser.parse_args()
    for path in unfold_model(args.model, args.data, args.out):
        print(path)


if __name__ == "__main__":
    main()
