"""Masks that teachers give to slices with cells, against what the rules say by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny_kit import tiny_kit
from training import batch, kit, kit_train, pseudo
from training.checkpoint import Settings, read
from training.trained import trained_net
from trtseg.errors import InputError

NOBODY, LIVER, TUMOUR, UNKNOWN = 0, 1, 2, 255


class Answers(nn.Module):
    """A net that answers with the same probabilities ``[n, S, S]`` whatever it is shown."""

    def __init__(self, p):
        super().__init__()
        self.register_buffer("logits", torch.logit(p.double())[:, None])

    def forward(self, x):
        return self.logits


def store_of(label, cell, flags, *, weak=True):
    """A slice of a kit on the CPU: its labels and numbers of cells ``[S, S]``, and flags of the cells from 1 on."""
    label, cell = (torch.as_tensor(a, dtype=torch.uint8)[None] for a in (label, cell))
    flag = torch.full((1, batch.MAX_CELLS + 1), 2, dtype=torch.uint8)
    flag[0, 1 : 1 + len(flags)] = torch.tensor(flags, dtype=torch.uint8)
    area = batch.cell_sums(cell, cell > 0)
    one = torch.tensor([weak])
    image = torch.zeros_like(label)
    return batch.DeviceKit(image, label, cell, flag, area, torch.zeros(2), torch.zeros(1), ~one, one)


def plane(value, side=20, dtype=np.uint8):
    return np.full((side, side), value, dtype)


def test_without_cells_only_what_is_sure_gets_a_class():
    p = plane(0.05, dtype=float)
    p[:5], p[5:10], p[10:12] = 0.9, 0.5, 0.75
    label = plane(LIVER)
    label[:, 15:] = NOBODY
    made, _ = pseudo.with_masks(store_of(label, plane(0), []), [Answers(torch.tensor(p)[None])])
    want = plane(LIVER)
    want[:5], want[5:12], want[:, 15:] = TUMOUR, UNKNOWN, NOBODY
    assert made.label[0].tolist() == want.tolist()
    assert made.tumour_known.tolist() == [True]
    assert made.weak.tolist() == [True]


@pytest.mark.parametrize(
    ("p", "share", "want"),
    [
        (0.6, 0.1, TUMOUR),  # above a half, and enough of it
        (0.3, 0.1, TUMOUR),  # above a fifth
        (0.15, 0.1, UNKNOWN),  # likely enough nowhere: the cell goes on to count
        (0.9, 0.01, UNKNOWN),  # 4 of 400 pixels are too few
    ],
)
def test_in_a_cell_with_a_tumour_the_likeliest_pixels_are_it(p, share, want):
    answer = plane(0.01, dtype=float)
    answer.ravel()[: int(400 * share)] = p
    made, count = pseudo.with_masks(
        store_of(plane(LIVER), plane(1), [1]), [Answers(torch.tensor(answer)[None])]
    )
    got = made.label[0].flatten()
    assert (got[: int(400 * share)] == want).all()
    assert (got[int(400 * share) :] == (LIVER if want == TUMOUR else UNKNOWN)).all()
    assert made.cell_flag[0, 1] == (2 if want == TUMOUR else 1)
    assert count == {
        "slices": 1,
        "cells with a mask": int(want == TUMOUR),
        "cells without": int(want != TUMOUR),
    }


def test_a_cell_without_a_tumour_has_none_whatever_the_teacher_says():
    made, _ = pseudo.with_masks(
        store_of(plane(LIVER), plane(1), [0]), [Answers(torch.full((1, 20, 20), 0.99))]
    )
    assert (made.label == LIVER).all()
    assert made.cell_flag[0, 1] == 0


def test_masks_that_somebody_drew_stay():
    label = plane(LIVER)
    label[3:6, 3:6] = TUMOUR
    store = store_of(label, plane(1), [1], weak=False)
    made, count = pseudo.with_masks(store, [Answers(torch.full((1, 20, 20), 0.99))])
    assert made.label[0].tolist() == label.tolist()
    assert count["slices"] == 0


def test_teachers_are_averaged():
    nets = [Answers(torch.full((1, 20, 20), p)) for p in (0.99, 0.5)]  # mean 0.745, not sure enough
    made, _ = pseudo.with_masks(store_of(plane(LIVER), plane(0), []), nets)
    assert (made.label == UNKNOWN).all()


def test_a_student_learns_from_a_teacher(tmp_path):
    path = tmp_path / "kit.zip"
    made = tiny_kit()
    kit.write(path, made)
    size = {"size": 32, "width": 4, "depth": 2, "precision": "fp32"}
    run = kit_train.Run(steps=1, batch=2)
    kit_train.train("liver", path, tmp_path / "liver", Settings("liver", **size), run)
    liver = tmp_path / "liver/last.pt"
    tumour = Settings("tumour", **size)
    kit_train.train("tumour", path, tmp_path / "teacher", tumour, run, liver=liver)
    teacher = str(tmp_path / "teacher/last.pt")
    kit_train.train("tumour", path, tmp_path / "student", tumour, run, liver=liver, teachers=[teacher])
    settings, _ = read(tmp_path / "student/last.pt")
    assert settings.teachers == pseudo.names([trained_net(teacher, "tumour")])
    assert settings.teachers != ""
    with pytest.raises(InputError, match="expected a tumour net"):
        trained_net(str(liver), "tumour")
