"""The U-Net in PyTorch: its shape, and what folding its batch norms does."""

import pytest
import torch

from training.unet import UNet, folded


def test_unet_shape_and_size():
    net = UNet(classes=3, width=4, depth=2)
    assert net(torch.zeros(2, 1, 32, 48)).shape == (2, 3, 32, 48)
    assert sum(p.numel() for p in UNet().parameters()) == 1_942_289
    assert UNet(classes=3, width=4, depth=2, stem=6)(torch.zeros(2, 1, 32, 48)).shape == (2, 3, 32, 48)


@pytest.mark.parametrize("stem", [0, 6])
def test_folding_batch_norm_changes_nothing(stem):
    torch.manual_seed(0)
    net = UNet(width=4, depth=2, stem=stem)
    for _ in range(5):  # running statistics that are not the initial ones
        net(torch.randn(4, 1, 32, 32) * 3 + 1)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), folded(net)(x), atol=1e-4)
