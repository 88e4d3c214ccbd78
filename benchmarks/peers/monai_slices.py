"""MONAI: its transforms, `SliceInferer`, and the transforms undone, in the order of the inference of its bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai import transforms as t
from monai.data import decollate_batch, list_data_collate
from monai.inferers import SliceInferer

from benchmarks.peers import nets, serve

BATCH = 4  # slices a call of the net


def pipelines(spec: dict[str, Any]) -> tuple[t.Compose, t.Compose]:
    """What comes before the net and what comes after it."""
    (low, high), mm, (rows, columns) = spec["window"], spec["pixel_mm"], spec["size"]
    before = t.Compose(
        [
            t.LoadImaged("image"),
            t.EnsureChannelFirstd("image"),
            t.Orientationd("image", axcodes="PLS"),  # rows, columns, slices
            t.Spacingd("image", pixdim=(mm, mm, -1), mode="bilinear"),
            t.ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
            t.ResizeWithPadOrCropd("image", (rows, columns, -1)),
        ]
    )
    after = t.Compose(
        [
            t.Invertd("pred", before, orig_keys="image", nearest_interp=False),
            t.AsDiscreted("pred", argmax=True),
        ]
    )
    return before, after


def main() -> None:
    args = serve.parser().parse_args()
    torch.set_num_threads(args.threads)
    specs = nets.specs(args.model)
    net = nets.both([(args.model / f"{spec['role']}.onnx").read_bytes() for spec in specs], specs)
    before, after = pipelines(specs[0])
    inferer = SliceInferer(roi_size=specs[0]["size"], spatial_dim=2, sw_batch_size=BATCH)

    def label(source: Path, target: Path, job: dict[str, Any]) -> None:
        batch = list_data_collate([before({"image": source})])
        with torch.inference_mode():
            batch["pred"] = inferer(batch["image"], net)
        result = next(after(item) for item in decollate_batch(batch))["pred"]
        save = t.SaveImage(output_dtype="uint8", print_log=False)
        save(result, filename=str(target).removesuffix(".nii.gz"))

    serve.serve(label, "monai", "torch", "nibabel", "numpy")


if __name__ == "__main__":
    main()
