"""A model's own nets in PyTorch, rebuilt from its ONNX files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from training.unet import UNet, shaped, weights


def torch_net(onnx_file: bytes) -> UNet:
    """The U-Net of an ONNX file as a PyTorch module."""
    return shaped(weights(onnx_file))


def specs(model: Path) -> list[dict[str, Any]]:
    """What the liver net and the tumour net expect: role, window, threshold, size, pixel_mm."""
    found = []
    for role in ("liver", "tumour"):
        properties = onnx.load(model / f"{role}.onnx").metadata_props
        spec = next(json.loads(entry.value) for entry in properties if entry.key == "trtseg")
        found.append({**spec, "logit": math.log(spec["threshold"] / (1 - spec["threshold"]))})
    return found


class ThreeClasses(nn.Module):
    """Both nets as one with three classes, for frameworks that know a single net.

    Input is that of the liver net ``[n, 1, H, W]`` in [0, 1]; the largest of the three outputs is the label. The input
    of the tumour net is made from it, which is exact while the window of the liver net holds that of the other.
    """

    def __init__(self, nets: list[nn.Module], specs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.liver, self.tumour = nets
        self.specs = specs

    def forward(self, x: Tensor) -> Tensor:
        liver, tumour = self.specs
        (low, high), (low2, high2) = liver["window"], tumour["window"]
        m1 = self.liver(x) - liver["logit"]
        inside = m1 > 0
        x2 = ((x * (high - low) + low - low2) / (high2 - low2)).clamp(0, 1) * inside
        m2 = self.tumour(x2) - tumour["logit"]
        return torch.cat([torch.zeros_like(m1), m1, torch.where(inside, m1 + m2, m1)], dim=1)


def both(onnx_files: list[bytes], specs: list[dict[str, Any]]) -> nn.Module:
    """The liver net and the tumour net of ONNX files as one."""
    return ThreeClasses([torch_net(data) for data in onnx_files], specs).eval()
