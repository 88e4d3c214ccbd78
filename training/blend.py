"""Take the weights of a net half-way back to the net that its training began with.

Weights between those of a net before and after it was trained on do as well on new data and less badly where data is
unlike the new one: Wortsman et al., *Robust fine-tuning of zero-shot models*, arXiv 2109.01903.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.unet import UNet, folded
from training.unfold import folded_net, weights
from trtseg import models


def blended(net: UNet, role: str, model: str | Path, share: float) -> UNet:
    """Return the net whose weights lie between those of an exported model and of ``net``.

    Parameters
    ----------
    net : UNet
        Trained from the weights of the model; with batch norms.
    role : str
        Which of the model's nets.
    model : str or Path
        Name or folder of the exported model.
    share : float
        0 gives the net of the model, 1 gives ``net``; both with batch norms folded in.
    """
    before = folded_net(weights(models.find(model).read(f"{role}.onnx")))
    after = folded(net)
    old = before.state_dict()
    with torch.no_grad():
        for name, value in after.state_dict().items():
            value.lerp_(old[name], 1 - share)
    return after
