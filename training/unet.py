"""The U-Net of both stages."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class DoubleConv(nn.Sequential):
    """Two times 3x3 convolution, batch norm, ReLU; dropout of whole channels at the end where asked for."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
        )


class UNet(nn.Module):
    """U-Net (Ronneberger et al., arXiv 1505.04597) with same-size convolutions and batch norm.

    Parameters
    ----------
    classes : int
        Output channels: logits, not probabilities.
    width : int
        Channels of the first level; they double at each of the ``depth`` poolings.
    depth : int
        Number of poolings; rows and columns of the input must be divisible by ``2 ** depth``.
    dropout : float
        Probability with which a channel is dropped in the expanding path, as in Gruber et al., section 2.4.
    stem : int
        0, or channels of a convolution with stride 2 in front, so that the first level has half the rows and columns of
        the input; the head then gives four logits a pixel. Rows and columns must be divisible by twice as much.
    channels : int
        Channels of the input: the nets of a cascade have one.
    """

    def __init__(
        self,
        classes: int = 1,
        width: int = 16,
        depth: int = 4,
        dropout: float = 0.1,
        stem: int = 0,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.sizes = {"width": width, "depth": depth, "stem": stem}
        widths = [width * 2**level for level in range(depth + 1)]
        self.stem: nn.Module = nn.Identity()
        if stem:
            first = nn.Conv2d(channels, stem, 4, stride=2, padding=1, bias=False)
            self.stem = nn.Sequential(first, nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        self.down = nn.ModuleList(
            DoubleConv(c_in, c_out)
            for c_in, c_out in zip([stem or channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(c, c // 2, 2, stride=2) for c in reversed(widths[1:]))
        self.merge = nn.ModuleList(DoubleConv(c, c // 2, dropout) for c in reversed(widths[1:]))
        self.head = nn.ConvTranspose2d(width, classes, 2, stride=2) if stem else nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:  # [n, channels, H, W] -> [n, classes, H, W]
        x, skips = self.stem(x), []
        for level, block in enumerate(self.down):
            if level:
                x = nn.functional.max_pool2d(x, 2)
            x = block(x)  # [n, width * 2**level, H / 2**level, W / 2**level]
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


def folded(net: UNet) -> UNet:
    """A copy for inference: batch norm folded into the convolutions, dropout gone; of a folded net, a copy."""
    net = copy.deepcopy(net).eval()
    if isinstance(net.down[0][1], nn.Identity):
        return net
    for block in [*net.down, *net.merge]:
        for conv, norm in ((0, 1), (3, 4)):
            block[conv] = nn.utils.fuse_conv_bn_eval(block[conv], block[norm])
            block[norm] = nn.Identity()
        block[6] = nn.Identity()
    if isinstance(net.stem, nn.Sequential):
        net.stem[0], net.stem[1] = nn.utils.fuse_conv_bn_eval(net.stem[0], net.stem[1]), nn.Identity()
    return net


def weights(onnx_file: bytes) -> dict[str, Tensor]:
    """The tensors of an exported net by the names that they have in `UNet`."""
    import onnx  # which machines that only train need not have

    graph = onnx.load_from_string(onnx_file).graph
    return {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}


def shaped(tensors: Mapping[str, Tensor]) -> UNet:
    """A folded net of the shape of these tensors, which are named as in `UNet`; a KeyError where one is missing."""
    depth = sum(name.startswith("down.") and name.endswith(".0.weight") for name in tensors) - 1
    stem = len(tensors["stem.0.weight"]) if "stem.0.weight" in tensors else 0
    net = folded(UNet(len(tensors["head.bias"]), len(tensors["down.0.0.weight"]), depth, stem=stem))
    net.load_state_dict({name: tensors[name] for name in net.state_dict()})
    return net
