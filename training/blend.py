"""Take the weights of a net half-way back to the net that its training began with.

Weights between those of a net before and after it was trained on do as well on new data and less badly where data is
unlike the new one: Wortsman et al., *Robust fine-tuning of zero-shot models*, arXiv 2109.01903.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.checkpoint import load
from training.unet import UNet, folded
from training.unfold import folded_net, weights
from trtseg import models


def blended(net: UNet, role: str, source: str | Path, share: float) -> UNet:
    """Return the net whose weights lie between those of an earlier net and of ``net``.

    Parameters
    ----------
    net : UNet
        Trained from the weights of the earlier net; with batch norms.
    role : str
        ``liver`` or ``tumour``.
    source : str or Path
        The earlier net: name or folder of an exported model, or, of a liver net, its checkpoint (``.pt``).
    share : float
        0 gives the earlier net, 1 gives ``net``; both with batch norms folded in.
    """
    if str(source).endswith(".pt"):
        before = folded(load(Path(source))[0].nets[role])
    else:
        before = folded_net(weights(models.find(source).read(f"{role}.onnx")))
    after = folded(net)
    old = before.state_dict()
    with torch.no_grad():
        for name, value in after.state_dict().items():
            value.lerp_(old[name], 1 - share)
    return after
