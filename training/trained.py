"""A trained net by the name or folder of a model, or by the checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

from training.checkpoint import read
from training.unet import UNet, folded, weights
from trtseg.errors import InputError


def pixels_of(source: str | Path, role: str) -> float:
    """Millimetres of the pixels that a net has learnt on; 0 if it saw the field of view. See `trained_net`."""
    if str(source).endswith(".pt"):
        return read(Path(source))[0].pixel_mm
    from trtseg import models

    return next((net.pixel_mm or 0.0 for net in models.find(source).spec.nets if net.role == role), 0.0)


def trained_net(source: str | Path, role: str) -> UNet:
    """Open a net, with its batch norms folded in, in evaluation.

    Parameters
    ----------
    source : str or Path
        Checkpoint (``.pt``), or name or folder of an exported model.
    role : str
        ``liver`` or ``tumour``.
    """
    if not str(source).endswith(".pt"):
        from training.unfold import folded_net  # checkpoints need neither this nor onnx
        from trtseg import models

        return folded_net(weights(models.find(source).read(f"{role}.onnx")))
    settings, state = read(Path(source))
    own = {k.removeprefix(f"{role}."): v for k, v in state["result"].items() if k.startswith(f"{role}.")}
    if not own:
        raise InputError(f"{source}: is of the method {settings.method}; expected a {role} net")
    net = UNet(1, settings.width, settings.depth, 0.0, settings.stem)
    net.load_state_dict(own)
    return folded(net)
