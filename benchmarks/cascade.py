"""Where the time of a segmentation goes, and beside it, in the same run, the same nets run naively.

    python -m benchmarks.cascade CT.nii.gz [--model default] [--repeats 5]

Naively means: PyTorch eager in FP32, NumPy between the nets, all nets on every slice, no post-processing. It needs the
``train`` extra; its nets are the model's own weights. Medians over the repeats, after one run that is not counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import trtseg
from benchmarks.peers.nets import torch_net
from training.program import parser_of, plain_errors
from trtseg import models
from trtseg.volume import Volume


def naive(volume: Volume, nets: list[torch.nn.Module], spec: trtseg.spec.CascadeSpec) -> np.ndarray:
    """A first implementation: slice by slice, all nets everywhere, labels back by nearest neighbour."""
    first, last = spec.nets[0], spec.nets[-1]
    rows, columns = volume.array.shape[1:]
    labels = np.zeros(volume.array.shape, np.uint8)
    for z, hu in enumerate(volume.array):
        image = torch.from_numpy(hu.astype(np.float32))[None, None]
        small = torch.nn.functional.interpolate(image, first.size, mode="bilinear", antialias=True).numpy()
        x1 = np.clip((small - first.window[0]) / (first.window[1] - first.window[0]), 0, 1)
        logits = nets[0](torch.from_numpy(x1))
        if len(nets) == 1:
            label = torch.softmax(logits, dim=1).numpy().argmax(1, keepdims=True).astype(np.uint8)
        else:
            mask = torch.sigmoid(logits).numpy() > first.threshold
            x2 = np.clip((small - last.window[0]) / (last.window[1] - last.window[0]), 0, 1) * mask
            p2 = torch.sigmoid(nets[1](torch.from_numpy(x2.astype(np.float32)))).numpy()
            label = mask.astype(np.uint8) + (mask & (p2 > last.threshold))
        big = torch.nn.functional.interpolate(torch.from_numpy(label), (rows, columns), mode="nearest")
        labels[z] = big[0, 0].numpy()
    return labels


@plain_errors()
def main() -> None:
    """Parse the command line, run both, print both."""
    parser = parser_of(__doc__)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    segmenter = trtseg.Segmenter(args.model, precision=args.precision)
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeats + 1):
            start = time.perf_counter()
            result = segmenter.segment(args.ct)
            segmented = time.perf_counter()
            result.save(Path(folder) / "seg.nii.gz")
            end = time.perf_counter()
            runs.append({**result.timings, "write": end - segmented, "total": end - start})
    times = {stage: statistics.median(run[stage] for run in runs[1:]) for stage in runs[0]}
    nets = sum(seconds for stage, seconds in times.items() if stage.endswith(" net"))
    rest = times["total"] - nets - times["read"]

    files = models.find(args.model)
    torch_nets = [torch_net(files.read(f"{net.role}.onnx")) for net in files.spec.nets]
    volume = trtseg.load(args.ct)
    naive_times = []
    with torch.inference_mode():
        for _ in range(2):
            start = time.perf_counter()
            labels = naive(volume, torch_nets, files.spec)
            naive_times.append(time.perf_counter() - start)

    print(
        f"{args.ct.name}: {'x'.join(map(str, volume.array.shape))} voxels, {segmenter.device} {segmenter.precision}\n"
    )
    print("| stage | seconds | of the nets |\n|---|---|---|")
    for stage, seconds in times.items():
        print(f"| {stage} | {seconds:.3f} | {seconds / nets:.1%} |")
    print(f"| all but nets and reading | {rest:.3f} | {rest / nets:.1%} |")
    ours = times["total"] - times["read"]
    print(
        f"| naive (PyTorch eager FP32), without reading | {min(naive_times):.3f} "
        f"| {min(naive_times) / ours:.1f} times trtseg |"
    )
    same = float((labels == result.canonical).mean())
    print(f"\nVoxels on which both agree (trtseg also post-processes): {same:.3%}")


if __name__ == "__main__":
    main()
