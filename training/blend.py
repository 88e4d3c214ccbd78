"""Take the weights of a net half-way back to the net that its training began with.

Weights between those of a net before and after it was trained on do as well on new data and less badly where data is
unlike the new one: Wortsman et al., *Robust fine-tuning of zero-shot models*, arXiv 2109.01903.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.trained import trained_net
from training.unet import UNet, folded


def blended(net: UNet, role: str, source: str | Path, share: float) -> UNet:
    """Return the net whose weights lie between those of an earlier net and of ``net``.

    Parameters
    ----------
    net : UNet
        Trained from the weights of the earlier net; with batch norms.
    role : str
        ``liver`` or ``tumour``.
    source : str or Path
        The earlier net: name or folder of an exported model, or its checkpoint (``.pt``).
    share : float
        0 gives the earlier net, 1 gives ``net``; both with batch norms folded in.
    """
    after, old = folded(net), trained_net(source, role).state_dict()
    with torch.no_grad():
        for name, value in after.state_dict().items():
            value.lerp_(old[name], 1 - share)
    return after
