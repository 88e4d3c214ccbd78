"""Batches, appearance, losses and scores of training from a kit."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_kit import tiny_kit
from training import appearance, batch, kit, kit_score, weak
from training.checkpoint import Settings, build, save
from training.distil import distilled
from training.losses import Loss
from training.methods import Method
from trtseg.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def store():
    return batch.DeviceKit.of(tiny_kit(), np.arange(10), "cpu")


def drawn(store, number=64, seed=0):
    p = torch.full((len(store),), 1 / len(store))
    return batch.draw(store, p, number, generator(seed), 32)


def test_labels_and_cells_move_with_the_image(store):
    b = drawn(store)
    bright = b.hu > 60
    healthy = torch.tensor([bool((store.label[r] == 2).sum() == 0) and r != 5 for r in b.row])
    liver = b.label > 0
    assert liver[healthy].sum() > 1000
    overlap = 2 * (bright & liver)[healthy].sum() / (bright[healthy].sum() + liver[healthy].sum())
    assert overlap > 0.9
    # slice 5 alone has cells: its quarters
    assert b.cell[b.row != 5].max() == 0
    assert b.cell[b.row == 5].max() == 3


def test_the_area_is_that_of_a_moved_slice(store):
    b = drawn(store, 200)
    liver = (b.label > 0).flatten(1).sum(1).float()
    before = (store.label[b.row] > 0).flatten(1).sum(1).float()
    inside = (before > 0) & (b.label[:, [0, -1]] == 0).all((1, 2)) & (b.label[:, :, [0, -1]] == 0).all((1, 2))
    ratio = (liver / before / b.area)[inside]
    assert inside.sum() > 50
    assert abs(ratio.mean() - 1) < 0.05


def test_equal_seeds_draw_equal_batches(store):
    one, two, other = drawn(store), drawn(store), drawn(store, seed=1)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert (one.hu != other.hu).any()


@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_every_pool_gets_its_share(role):
    made = tiny_kit()
    rows = np.arange(10)
    p = batch.weights(made, rows, role)
    assert p.sum() == pytest.approx(1)
    tumour = [1, 3, 7]
    if role == "liver":
        total = sum(batch.LIVER_SHARES)
        assert p[tumour].sum() == pytest.approx(batch.LIVER_SHARES[0] / total)
        assert p[8:].sum() == pytest.approx(batch.LIVER_SHARES[2] / total)
    else:
        assert (p[8:] == 0).all()
        mask, healthy, some, _ = batch.TUMOUR_SHARES  # no slice has only cells without a tumour
        assert p[5] == pytest.approx(some / (mask + healthy + some))
        assert p[tumour].sum() == pytest.approx(mask / (mask + healthy + some))


def test_too_many_cells_are_refused():
    made = tiny_kit()
    object.__setattr__(made, "cells", np.tile(made.cells[:1], (batch.MAX_CELLS + 1, 1)))
    with pytest.raises(InputError, match="more than 63 cells"):
        batch.DeviceKit.of(made, np.arange(10), "cpu")


def test_the_scanner_leaves_air_as_it_is_and_changes_tissue():
    hu = torch.full((64, 16, 16), 60.0)
    hu[:, :4] = -1000
    out = appearance.scanner(hu, generator())
    assert out.isfinite().all()
    dark = out[:, 0, 0] < -155
    assert dark.float().mean() > 0.9
    assert (out[~dark, 0] >= -110).all()  # a window that ends there
    assert (out[:, 10] - 60).abs().mean() > 5
    assert ((out[:, 10] - 60).abs().mean(1) < 60).float().mean() > 0.9


def test_only_floors_of_clipped_sources_get_another_value():
    hu = torch.full((40, 8, 8), 3.0)
    hu[:, 4:] = 70
    hu[:, 0] = -1000
    lowest = torch.tensor([0.0, -1000.0]).repeat(20)
    out = appearance.unclip(hu, lowest, generator())
    assert (out[1::2] == hu[1::2]).all()
    assert (out[:, 4:] == 70).all()
    assert (out[:, 0] == -1000).all()
    assert 0.5 < (out[::2, 2, 2] < -30).float().mean() < 1


def test_lesions_lie_in_livers_and_are_tumour(store):
    b = drawn(store)
    b = b._replace(label=b.label.clamp_max(1))
    out = appearance.lesions(b, 1.0, generator())
    changed = out.hu != b.hu
    assert (b.label[out.label == 2] == 1).all()
    assert (b.label[changed] > 0).all()
    with_lesion = (out.label == 2).flatten(1).any(1)
    assert with_lesion.sum() > 20
    assert (out.hu - b.hu)[out.label == 2].mean() < -10
    untouched = appearance.lesions(b, 0.0, generator())
    assert (untouched.hu == b.hu).all()
    assert (untouched.label == b.label).all()


def test_gallbladders_lie_beside_livers(store):
    b = drawn(store)
    out = appearance.gallbladders(b, 1.0, generator())
    changed = out.hu != b.hu
    assert changed.sum() > 100
    assert (b.label[changed] == 0).all()


def in_soft_tissue():
    """Slices with soft tissue beside the liver, and room for what is put there."""
    store = batch.DeviceKit.of(tiny_kit(128), np.arange(10), "cpu")
    b = batch.draw(store, torch.full((10,), 0.1), 64, generator(), 128)
    return b._replace(hu=torch.where(b.hu < 0, 30.0, b.hu))


def test_masses_lie_beside_livers_or_push_into_them():
    b = in_soft_tissue()
    out, where = appearance.masses(b, 1.0, generator())
    liver = b.label > 0
    sizes = liver.flatten(1).sum(1)
    large = sizes > 400
    assert where[large].flatten(1).sum(1).float().mean() > 200
    assert (out.hu[~where] == b.hu[~where]).all()
    lost = liver & (out.label == 0)
    assert (out.label[~lost] == b.label[~lost]).all()
    assert where[lost].all()
    row = torch.arange(128).view(1, -1, 1)
    middle, lost_at = (
        (m * row).flatten(1).sum(1) / m.flatten(1).sum(1) for m in (liver.float(), lost.float())
    )
    assert (lost_at > middle)[lost.flatten(1).any(1)].float().mean() > 0.9  # from behind
    pushed = lost.flatten(1).sum(1)[large] / sizes[large]
    assert 0.2 < (pushed > 0).float().mean() < 0.8
    assert pushed.max() < 0.4
    dark = out.hu[where]
    assert dark.mean() < b.hu[liver].mean() - 20
    assert dark.min() < -90  # layers of fat
    for share, there in ((0.0, 0), (0.5, 0.5)):
        some = appearance.masses(b, share, generator())[1][large].flatten(1).any(1)
        assert abs(some.float().mean() - there) < 0.2


def test_bulging_tumours_have_their_base_in_the_liver():
    b = in_soft_tissue()
    out, where = appearance.bulging(b, 1.0, generator())
    liver = b.label > 0
    large = liver.flatten(1).sum(1) > 400
    assert (out.hu[~where] == b.hu[~where]).all()
    new = out.label != b.label
    assert where[new].all()
    assert (out.label[new] == 2).all()
    tumour = where & (out.label == 2)
    there = tumour.flatten(1).any(1)
    assert there[large].float().mean() > 0.6
    assert not there[~large].any()
    beyond = (tumour & ~liver).flatten(1).sum(1)[there] / tumour.flatten(1).sum(1)[there]
    assert beyond.max() < 0.55
    assert 0.1 < beyond.mean() < 0.5
    assert out.hu[tumour].mean() < b.hu[liver].mean() - 20
    assert (appearance.grown(liver, 9) > 0)[tumour].all()
    assert not appearance.bulging(b, 0.0, generator())[1].any()


def test_painted_livers_are_gone(store):
    out = appearance.without_liver(drawn(store), 1.0, generator())
    assert out.label.max() == 0
    assert out.cell.max() == 0
    assert (out.hu > 60).sum() == 0


def test_a_cut_slice_keeps_a_box(store):
    b = drawn(store)._replace(label=torch.ones(64, 32, 32, dtype=torch.uint8))
    out = appearance.cut(b, 1.0, generator())
    kept = out.label == 1
    assert (out.hu[~kept] == -1000).all()
    assert (out.hu[kept] == b.hu[kept]).all()
    box = kept.any(2)[:, :, None] & kept.any(1)[:, None, :]
    assert (box == kept).all()
    assert 0.4 < kept.float().mean() < 0.8


def cells_of(flags):
    """A slice of 10x20 pixels: two cells of 100 pixels side by side."""
    cell = torch.ones(1, 10, 20, dtype=torch.uint8)
    cell[..., 10:] = 2
    flag = torch.full((1, batch.MAX_CELLS + 1), 2, dtype=torch.uint8)
    flag[0, 1 : 1 + len(flags)] = torch.tensor(flags, dtype=torch.uint8)
    return cell, flag, torch.full((1, batch.MAX_CELLS + 1), 100.0)


def test_cells_ask_for_what_they_know():
    everywhere = torch.ones(1, 10, 20, dtype=torch.bool)
    logits = torch.full((1, 10, 20), -20.0)
    negative, positive = weak.cell_losses(logits, everywhere, *cells_of([0, 1]))
    # nothing found: the cell without is content; 2 of the other's 100 pixels are wanted and 1e-6 are there
    assert float(negative) == pytest.approx(np.log1p(np.exp(-20.0)))
    assert float(positive) == pytest.approx(np.log(2 / 1e-6), rel=1e-3)
    values = torch.full((1, 10, 20), -8.0)
    values[0, 3, 14] = -1.0
    values.requires_grad_()
    weak.cell_losses(values, everywhere, *cells_of([2, 1]))[1].backward()
    assert values.grad[..., :10].abs().max() == 0
    assert values.grad.flatten().argmin() == 3 * 20 + 14  # the likeliest pixel is to rise
    # three sure pixels are more than two
    values = torch.full((1, 10, 20), -20.0)
    values[0, 2, 11:14] = 20
    negative, positive = weak.cell_losses(values, everywhere, *cells_of([0, 1]))
    assert (float(positive), float(negative)) == (0, pytest.approx(0, abs=1e-6))
    # the same three in a cell that has none: 3 of 100 pixels cost 20 each
    negative, positive = weak.cell_losses(values, everywhere, *cells_of([2, 0]))
    assert float(negative) == pytest.approx(3 * 20 / 100)
    assert float(positive) == 0


def test_cells_that_are_partly_out_of_view_ask_for_nothing():
    cell, flag, expected = cells_of([2, 1])
    expected[0, 2] = 130
    logits = torch.full((1, 10, 20), -5.0)
    where = torch.ones_like(cell, dtype=torch.bool)
    assert weak.cell_losses(logits, where, cell, flag, expected)[1] == 0
    cell[..., 10:] = 0
    assert weak.cell_losses(logits, where, cell, flag, expected)[1] == 0


def test_what_is_unknown_teaches_nothing():
    logits = torch.zeros(2, 1, 10, 20, requires_grad=True)
    label = torch.ones(2, 10, 20, dtype=torch.uint8)
    label[:, :5] = 255
    label[:, 7:] = 0
    weak.liver_loss(Loss(2, 0.5, "dice"), logits, label).backward()
    assert logits.grad[:, :, :5].abs().max() == 0
    assert (logits.grad[:, :, 5:7] < 0).all()

    logits.grad = None
    known = torch.tensor([True, False])
    mask = torch.ones(2, 10, 20, dtype=torch.bool)
    mask[..., :3] = False
    cell, flag, expected = (x.repeat(2, *[1] * (x.ndim - 1)) for x in cells_of([]))
    loss = weak.TumourLoss(Loss(2, 0.5, "dice"), 1.0, 1.0)
    loss(logits, label, mask, (known, ~known), (cell, flag, expected)).backward()
    assert logits.grad[..., :3].abs().max() == 0
    assert logits.grad[:, :, :5].abs().max() == 0
    assert logits.grad[1, :, 5:7].abs().max() == 0  # liver where tumours are fused into it
    assert (logits.grad[0, :, 5:7, 3:] > 0).all()
    assert (logits.grad[1, :, 7:, 3:] > 0).all()


class Marks(Method):
    """Calls liver what is brighter than 60 HU, and tumour what is brighter than 200."""

    def __init__(self):
        super().__init__({})

    def probabilities(self, hu):
        return (hu > 60).float(), (hu > 200).float()


def test_counts_are_of_known_pixels(store):
    store.label[1, :16] = 255
    found = kit_score.counts(Marks(), store, 32)
    bright = store.hu(torch.arange(10)) > 60
    known = store.label != 255
    liver = (store.label > 0) & known
    assert found["liver"][:, 0].tolist() == (bright & liver).flatten(1).sum(1).tolist()
    assert found["liver"][:, 1].tolist() == (bright & known).flatten(1).sum(1).tolist()
    assert found["liver"][:, 2].tolist() == liver.flatten(1).sum(1).tolist()
    assert found["cells"].shape == (10, len(kit_score.THRESHOLDS), batch.MAX_CELLS + 1)


@pytest.mark.parametrize(("pixels", "expected"), [([[3, 5, 4], [1, 1, 2]], 8 / 12), ([[0, 0, 0]], 1.0)])
def test_dice_is_of_all_slices_together(pixels, expected):
    assert kit_score.dice(np.array(pixels)) == pytest.approx(expected)


def test_the_loss_of_distillation():
    loss = Loss(2, 0.5, "none")
    loss.frequency.copy_(torch.tensor([0.75, 0.25]))
    half, two = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[2.0, 0.0]]]])
    at_two = math.log(1 + math.exp(2)) - 1  # cross-entropy of p = 0.5 with the logit 2
    # a pixel of p = 0.5 weighs the mean of both classes
    mean = (0.75**-0.5 + 0.25**-0.5) / 2 / (0.75**0.5 + 0.25**0.5)
    assert float(distilled(loss, two, half)) == pytest.approx(mean * (at_two + math.log(2)) / 2, rel=1e-5)
    first = torch.tensor([[[True, False]]])
    assert float(distilled(loss, two, half, first)) == pytest.approx(mean * at_two, rel=1e-5)
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    distilled(loss, logits, torch.sigmoid(logits.detach())).backward()
    assert float(logits.grad.abs().max()) < 1e-7  # least where both say the same


@pytest.mark.parametrize(
    ("options", "message"),
    [("--liver joint.pt", "joint.pt: is of the method joint; expected liver"),
     ("--liver liver.pt --tumour liver.pt", "liver.pt: is of the method liver; expected tumour"),
     ("--liver liver.pt --tumour joint.pt", "joint.pt: is of the method joint; expected tumour")],
)  # fmt: skip
def test_a_net_of_another_role_is_not_scored(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    kit.write(Path("kit.zip"), tiny_kit())
    for method in ("liver", "joint"):
        settings = Settings(method, size=32, width=4, depth=2)
        save(Path(f"{method}.pt"), settings, {"result": build(settings, None).nets.state_dict()})
    monkeypatch.setattr("sys.argv", ["kit_score", "kit.zip", *options.split()])
    with pytest.raises(SystemExit, match=f"^error: {message}$"):
        kit_score.main()
