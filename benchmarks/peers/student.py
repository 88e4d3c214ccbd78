"""PyTorch as student code runs it: nibabel, a loop over the slices, NumPy between the nets, no post-processing.

The two lines that help are options: ``--channels-last`` and ``--precision bf16``; and ``--compile``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers import nets, serve

Net = Callable[[np.ndarray], np.ndarray]  # [1, 1, H, W] to logits


def torch_runner(net: Any, *, channels_last: bool, bf16: bool, compiled: bool) -> Net:
    """A PyTorch module as a function of NumPy arrays."""
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    if compiled:
        net = torch.compile(net)

    def run(x: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(x)
        if channels_last:
            tensor = tensor.to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(tensor)
        return logits.float().numpy()

    return run


def label(source: Path, target: Path, job: dict[str, Any], both: list[Net], specs: list[Any]) -> None:
    """Label a CT. The job says where the patient is: rows and columns of the square to look at."""
    image = nib.load(source)
    volume = np.asarray(image.dataobj).transpose(2, 1, 0)  # [Z, Y, X]
    liver, tumour = specs
    size = tuple(liver["size"])
    (top, left), (height, width) = job["origin"], job["extent"]
    rows, columns = volume.shape[1:]
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + height, rows), min(left + width, columns)
    labels = np.zeros(volume.shape, np.uint8)
    for z, hu in enumerate(volume):
        square = np.full((1, 1, height, width), -1000, np.float32)
        square[0, 0, y0 - top : y1 - top, x0 - left : x1 - left] = hu[y0:y1, x0:x1]
        small = functional.interpolate(
            torch.from_numpy(square), size, mode="bilinear", antialias=True
        ).numpy()
        mask = both[0](windowed(small, liver)) > liver["logit"]
        mask2 = both[1](windowed(small, tumour) * mask) > tumour["logit"]
        found = torch.from_numpy(mask.astype(np.uint8) + (mask & mask2))
        large = functional.interpolate(found, (height, width), mode="nearest").numpy()[0, 0]
        labels[z, y0:y1, x0:x1] = large[y0 - top : y1 - top, x0 - left : x1 - left]
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), image.affine), target)


def windowed(hu: np.ndarray, spec: dict[str, Any]) -> np.ndarray:
    """HU mapped to [0, 1]."""
    low, high = spec["window"]
    scaled: np.ndarray = np.clip((hu - low) / (high - low), 0, 1)
    return scaled


def main() -> None:
    options = serve.parser()
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options.add_argument("--channels-last", action="store_true")
    options.add_argument("--compile", action="store_true")
    args = options.parse_args()
    if args.compile:
        os.environ.setdefault("TORCHINDUCTOR_FREEZING", "1")  # weights laid out once: faster
    torch.set_num_threads(args.threads)
    both = [
        torch_runner(
            nets.torch_net((args.model / f"{role}.onnx").read_bytes()),
            channels_last=args.channels_last,
            bf16=args.precision == "bf16",
            compiled=args.compile,
        )
        for role in ("liver", "tumour")
    ]
    specs = nets.specs(args.model)
    serve.serve(lambda *job: label(*job, both, specs), "torch", "nibabel", "numpy")


if __name__ == "__main__":
    main()
