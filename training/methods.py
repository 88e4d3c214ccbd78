"""The methods of Gruber et al., arXiv 1902.07971: how slices in HU become logits, and logits a loss.

Section 2.1: one net with three classes (`OneStep`). Sections 2.2 and 2.3: a liver net N1 (`Liver`), then a tumour net
N2 on what N1 leaves of the slice (`Tumour`), trained one after the other; or both at once with a joint loss (`Joint`).

Each is a module. Called with HU and labels it gives the loss; `labels` and `probabilities` are its answer. ``nets``
holds the nets that it trains, by their role in a cascade.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.cases import UNKNOWN
from training.losses import Loss
from training.unet import UNet

WINDOW = {
    "liver": (-160.0, 240.0),
    "one-step": (-160.0, 240.0),
    "tumour": (-40.0, 200.0),
}  # HU mapped to 0 and 1


def windowed(hu: Tensor, role: str) -> Tensor:
    """HU ``[n, H, W]`` to the input ``[n, 1, H, W]`` in [0, 1] of a net, as ``prepare`` and ``gate`` compute it."""
    lo, hi = WINDOW[role]
    return ((hu.float() - lo) / (hi - lo)).clamp(0, 1)[:, None].contiguous(memory_format=torch.channels_last)


class Method(nn.Module):
    """What all methods share: nets by role, and labels from probabilities.

    The nets run in ``precision``, `torch.bfloat16` or `torch.float32`.
    """

    def __init__(self, nets: dict[str, UNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets).to(memory_format=torch.channels_last)
        self.precision = torch.float32

    def compute_in(self, precision: torch.dtype) -> None:
        """Let all nets run in a precision, also the liver net that a tumour net stands behind."""
        self.precision = precision

    def logits(self, role: str, x: Tensor) -> Tensor:
        """FP32 logits ``[n, c, H, W]`` of the net ``role`` for its input ``[n, 1, H, W]``."""
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.nets[role](x).float()

    def probabilities(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of liver (with tumour) and of tumour for HU ``[n, H, W]``, both ``[n, H, W]``."""
        raise NotImplementedError

    def labels(self, hu: Tensor) -> Tensor:
        """0, 1 liver, 2 tumour: uint8 ``[n, H, W]``, with the thresholds 0.5; tumour lies in the liver only."""
        liver, tumour = self.probabilities(hu)
        return ((liver > 0.5).byte() + ((liver > 0.5) & (tumour > 0.5)).byte()).to(torch.uint8)


class OneStep(Method):
    """One net, three classes (section 2.1)."""

    def __init__(self, net: UNet, loss: Loss) -> None:
        super().__init__({"one-step": net})
        self.loss = loss

    def forward(self, hu: Tensor, label: Tensor, balance: float | None = None) -> Tensor:
        """The loss on HU and labels ``[n, H, W]``; pixels that nobody knows do not count."""
        known = label != UNKNOWN
        return self.loss(self.logits("one-step", windowed(hu, "one-step")), label * known, balance, known)

    def probabilities(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """See `Method`."""
        p = self.logits("one-step", windowed(hu, "one-step")).softmax(dim=1)
        return p[:, 1] + p[:, 2], p[:, 2]

    def labels(self, hu: Tensor) -> Tensor:
        """The class of the largest logit."""
        return self.logits("one-step", windowed(hu, "one-step")).argmax(dim=1).to(torch.uint8)


class Liver(Method):
    """N1: liver against the rest; tumour counts as liver (section 2.2)."""

    def __init__(self, net: UNet, loss: Loss) -> None:
        super().__init__({"liver": net})
        self.loss = loss

    def forward(self, hu: Tensor, label: Tensor, balance: float | None = None) -> Tensor:
        """The loss on HU and labels ``[n, H, W]``; pixels that nobody knows do not count."""
        known = label != UNKNOWN
        return self.loss(self.logits("liver", windowed(hu, "liver")), (label > 0) & known, balance, known)

    def probabilities(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """See `Method`; it knows no tumour."""
        p = torch.sigmoid(self.logits("liver", windowed(hu, "liver")))[:, 0]
        return p, torch.zeros_like(p)


class Tumour(Method):
    """N2: tumour within what a trained N1 calls liver (section 2.2); N1 stays as it is.

    Parameters
    ----------
    net : UNet
        N2.
    loss : Loss
        Its loss.
    liver : Liver
        N1.
    grow : int
        In training, N1's mask grows by up to so many pixels, at random: N2 shall know what lies beside a liver, as
        gallbladder and vessels, since on other patients N1 will let some of it pass.
    """

    def __init__(self, net: UNet, loss: Loss, liver: Liver, grow: int = 0) -> None:
        super().__init__({"tumour": net})
        self.loss, self.grow = loss, grow
        self.liver = (liver.eval().requires_grad_(False),)  # in a tuple: not one of the modules that train

    def compute_in(self, precision: torch.dtype) -> None:
        """See `Method`."""
        super().compute_in(precision)
        self.liver[0].compute_in(precision)

    def _logits(self, hu: Tensor, mask: Tensor) -> Tensor:
        """Tumour logits ``[n, 1, H, W]`` of HU ``[n, H, W]`` within a mask of that shape."""
        return self.logits("tumour", windowed(hu, "tumour") * mask[:, None])

    def forward(self, hu: Tensor, label: Tensor, balance: float | None = None) -> Tensor:
        """The loss on HU and labels ``[n, H, W]``; only what N1 calls liver counts, since N2 sees nothing else."""
        with torch.no_grad():
            mask = self.liver[0].probabilities(hu)[0] > 0.5
        if self.grow and self.training:
            r = int(torch.randint(0, self.grow + 1, ()))
            mask = F.max_pool2d(mask.float()[:, None], 2 * r + 1, 1, r)[:, 0] > 0
        return self.loss(self._logits(hu, mask), label == 2, balance, mask & (label != UNKNOWN))

    def probabilities(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """See `Method`."""
        liver = self.liver[0].probabilities(hu)[0]
        return liver, torch.sigmoid(self._logits(hu, liver > 0.5))[:, 0] * (liver > 0.5)


class Joint(Method):
    """N1 and N2 at once: ``c1 * loss(liver, N1(x)) + c2 * loss(tumour, N2(window(x * mask)))`` (section 2.3).

    Parameters
    ----------
    liver, tumour : UNet
        N1 and N2.
    losses : (Loss, Loss)
        Of N1 and N2.
    gate : str
        What the mask is to N1's gradient. ``straight-through``: a threshold going forward, the sigmoid going backward
        (Bengio et al., arXiv 1308.3432); ``soft``: the sigmoid itself; ``hard``: a threshold, without gradient.
    constants : (float, float)
        c1 and c2.
    """

    def __init__(
        self,
        liver: UNet,
        tumour: UNet,
        losses: tuple[Loss, Loss],
        gate: str = "straight-through",
        constants: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__({"liver": liver, "tumour": tumour})
        self.losses = nn.ModuleList(losses)
        self.gate, self.constants = gate, constants

    def _mask(self, l1: Tensor) -> Tensor:
        """The liver mask ``[n, 1, H, W]`` of logits of that shape; in evaluation always the threshold."""
        hard = (l1 > 0).float()
        if not self.training or self.gate == "hard":
            return hard
        soft = torch.sigmoid(l1)
        return soft if self.gate == "soft" else hard + soft - soft.detach()

    def _run(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of N1 and N2, both ``[n, 1, H, W]``."""
        l1 = self.logits("liver", windowed(hu, "liver"))
        x2 = windowed(hu, "tumour") * self._mask(l1)
        return l1, self.logits("tumour", x2.contiguous(memory_format=torch.channels_last))

    def forward(self, hu: Tensor, label: Tensor, balance: float | None = None) -> Tensor:
        """The loss on HU and labels ``[n, H, W]``."""
        l1, l2 = self._run(hu)
        (c1, c2), (loss1, loss2) = self.constants, self.losses
        known = label != UNKNOWN
        of_liver = loss1(l1, (label > 0) & known, balance, known)
        return c1 * of_liver + c2 * loss2(l2, label == 2, balance, known & (l1[:, 0] > 0))

    def probabilities(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """See `Method`."""
        l1, l2 = self._run(hu)
        return torch.sigmoid(l1)[:, 0], torch.sigmoid(l2)[:, 0] * (l1[:, 0] > 0)
