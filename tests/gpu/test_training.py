"""Training from a kit on a GPU: what is recorded is what would have been computed."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from tests.tiny_kit import tiny_kit
from training import batch, kit_score
from training.checkpoint import Settings, build
from training.replay import Replayed
from training.trainer import Run, Trainer

pytestmark = pytest.mark.gpu


def test_a_replay_takes_new_inputs_weights_and_random_numbers():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(1, 4, 3).cuda()
    given = [torch.randn(2, 1, 16, 16, device="cuda") for _ in range(4)]

    def loss(x):
        layer.zero_grad(set_to_none=True)
        value = layer(x).square().mean()
        value.backward()
        return value.detach()

    replayed = Replayed()
    for x in given:
        value, gradient = replayed(loss, x), layer.weight.grad.clone()
        expected = layer(x).square().mean()
        (wanted,) = torch.autograd.grad(expected, layer.weight)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(gradient, wanted, rtol=1e-2, atol=1e-4)
        with torch.no_grad():
            layer.weight.mul_(1.5)
    dropped, half = Replayed(), lambda x: torch.nn.functional.dropout(x, 0.5)
    x = torch.ones(1000, device="cuda")
    seen = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        seen.append(dropped(half, x))
    assert not torch.equal(seen[0], seen[1])
    torch.manual_seed(2)
    assert torch.equal(seen[1], dropped(half, x))


@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_a_recorded_training_is_that_of_its_steps(role):
    kit, rows = tiny_kit(), np.arange(10)
    settings = Settings(role, size=32, batch=8, width=8, depth=2, stem=4, dropout=0.0, balance=0.0)
    run = Run(steps=20, batch=8, lr=1e-3)
    losses = {}
    for kind in ("replayed", "step by step"):
        torch.manual_seed(3)
        liver = build(replace(settings, method="liver"), None) if role == "tumour" else None
        method = build(settings, liver)
        kit_score.to_device(method, torch.device("cuda"))
        method.compute_in(torch.float32)
        store = batch.DeviceKit.of(kit, rows, "cuda")
        p = torch.from_numpy(batch.weights(kit, rows, role).astype(np.float32)).cuda()
        trainer = Trainer(role, method, settings, run, store, p)
        assert trainer.replayed is not None
        if kind != "replayed":
            trainer.replayed = None
        for _ in trainer.steps():
            pass
        losses[kind] = torch.stack(trainer.losses).cpu()
    assert losses["replayed"].isfinite().all()
    assert losses["replayed"][-5:].mean() < losses["replayed"][:5].mean()
    torch.testing.assert_close(losses["replayed"][:8], losses["step by step"][:8], rtol=0.02, atol=1e-3)
