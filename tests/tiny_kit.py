"""A training kit made of discs; it needs no more than training itself."""

from __future__ import annotations

import numpy as np

from training.kit import Kit, levels, to_levels


def tiny_kit(size: int = 32) -> Kit:
    """A kit of ten slices: a bright disc as liver, in some a dark spot as tumour; two validate, two have none."""
    rng = np.random.default_rng(0)
    level_hu = levels(6.0)
    hu = rng.normal(0, 10, (10, size, size))
    label = np.zeros(hu.shape, np.uint8)
    y, x = np.mgrid[:size, :size]
    for i in range(8):
        centre = rng.integers(size // 3, size // 2, 2)
        liver = np.hypot(y - centre[0], x - centre[1]) < size / 4
        spot = np.hypot(y - centre[0], x - centre[1]) < size / 10
        hu[i][liver] += 120
        label[i][liver] = 1
        if i % 2:
            hu[i][spot] -= 80
            label[i][spot] = 2 if i != 5 else 1
    half = size // 2
    cells = [[5, 0, half, 0, half, 1], [5, half, size, 0, half, 0], [5, 0, half, half, size, 2]]
    return Kit(
        image=to_levels(hu, level_hu),
        label=label,
        level_hu=level_hu,
        cells=np.array(cells, np.float32),
        pixel_mm=np.full(10, 8, np.float32),
        thickness_mm=np.full(10, np.nan, np.float32),
        lowest_hu=np.full(10, -1000, np.float32),
        tumour_known=np.array([i != 5 for i in range(10)]),
        case=np.array([f"case{i}" for i in range(10)]),
        group=np.array([f"p{i // 2}" for i in range(10)]),
        source=np.full(10, "phantom"),
        split=np.array(["validation" if i in (2, 3) else "train" for i in range(10)]),
        body_part=np.array(["" if i < 8 else "chest" for i in range(10)]),
        z=np.arange(10),
    )


def write_no_nets(monkeypatch) -> None:
    """Have `training.export` write all but the nets, which take seconds each: for tests of what their specs say."""
    monkeypatch.setattr("training.export.export_onnx", lambda net, spec: None)
    monkeypatch.setattr("training.export.cast", lambda model, kind: None)
    monkeypatch.setattr("training.export.write_onnx", lambda model, path: path.write_bytes(b"net"))
    monkeypatch.setattr("training.export.check_parity", lambda *_, half: "")
