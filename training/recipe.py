"""The way to the shipped model: its stages, as data, and the command that goes it.

    python -m training.recipe --shared ../shared/data -o runs --start FOLDER      # or: make train

A kit is packed, each stage trains from it, and the nets are exported and evaluated. A stage that is done is not done
again, and a killed one resumes. `STAGES` took between one and two minutes each on an H200; on a CPU ``--share 0.02``
shows that all works. ``FOLDER`` is the exported model whose nets are imitated besides (`training.distil`): for the
shipped version 0.8.0 that was version 0.7.0, which the history of ``trtseg/models/default`` holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import trtseg
from training import calibration, evaluate, export, int8, kit, kit_train
from training.cases import Case
from training.program import parser_of, plain_errors
from training.readers import png_slices
from training.readers.shared import VALIDATION, shared_cases
from training.split import by_patient
from training.trainer import Run, settings_of
from trtseg import models
from trtseg.errors import ArgumentError, InputError
from trtseg.io.folders import make_folder


@dataclass(frozen=True)
class Stage:
    """A training run.

    Attributes
    ----------
    name, role : str
        Name of the run's folder, and the net that it trains.
    run : Run
        How it goes.
    start : str or None
        The stage whose weights it starts with; None for random weights.
    behind : str or None
        For a tumour net, the stage of its liver net.
    """

    name: str
    role: str
    run: Run
    start: str | None = None
    behind: str | None = None


#: In this order. What a `Run` does not say here are its defaults: shares of lesions, gallbladders, cut livers, ...
STAGES = (
    Stage("liver", "liver", Run(steps=3576, batch=64, lr=3e-3, every=45)),
    Stage("tumour", "tumour", Run(steps=3294, batch=64, lr=3e-3, every=45), behind="liver"),
    Stage("liver-2", "liver", Run(steps=2328, batch=64, lr=1.8e-3, every=60), start="liver"),
    Stage("tumour-2", "tumour", Run(steps=1853, batch=64, lr=1.5e-3, every=60), "tumour", behind="liver-2"),
)
#: The stages whose nets are exported, in the order in which they run.
EXPORTED = ("liver-2", "tumour-2")
#: Shape of both nets.
NET = {"width": 24, "depth": 3, "stem": 16}
#: Pixels of a side, mm per pixel, and HU between the levels of soft tissue in the kit.
SIZE, PIXEL_MM, LEVEL_HU = 256, 1.5, 6.0
#: Threshold of the tumour net: that of version 0.7.0, which was chosen on the patients that validate.
TUMOUR_THRESHOLD = 0.7
ABOUT = {
    "version": "0.8.0",
    "trained_on": "CT slices of LiTS and 3D-IRCADb-01, and CT slices without liver; see MODEL_CARD.md",
    "licence": "demonstration weights; see MODEL_CARD.md",
}


def go(shared: Path, runs: Path, start: str, out: Path, share: float = 1.0) -> None:
    """Go the whole way.

    Parameters
    ----------
    shared : Path
        The data, laid out as ``training/README.md`` says.
    runs : Path
        Where the kit and the runs are kept.
    start : str
        Name or folder of the model whose nets are imitated.
    out : Path
        Folder of the model that is written.
    share : float
        Of the steps of each stage.

    Raises
    ------
    ArgumentError, InputError, ModelError
        Before any work, if the share is none, if ``runs`` holds another kit, or if there is no such model.
    """
    if not (share > 0 and math.isfinite(share)):
        raise ArgumentError(f"share: got {share}; expected a number above 0")
    models.find(start)
    packed, cases = runs / "kit.zip", shared_cases(shared)
    if packed.exists():
        check_kit(packed, cases)
    else:
        make_folder(runs, "--runs")
        kit.write(packed, kit.build(cases, VALIDATION, SIZE, PIXEL_MM, LEVEL_HU))
    for stage in STAGES:
        run = replace(stage.run, steps=max(1, round(stage.run.steps * share)))
        settings = settings_of(stage.role, run, size=SIZE, **NET)
        liver = runs / stage.behind / "last.pt" if stage.behind else None
        begin = runs / stage.start / "last.pt" if stage.start else None
        kit_train.train(
            stage.role, packed, runs / stage.name, settings, run, start=begin, liver=liver, distil=[start]
        )
    checkpoints = [runs / name / "last.pt" for name in EXPORTED]
    export.export(checkpoints, out, {"tumour": TUMOUR_THRESHOLD}, ABOUT)
    print(calibration.add(out, png_slices(shared / "lits_slices")))
    print(int8.quantise(out, shared)[0])
    with trtseg.Segmenter(out, precision="fp32") as segmenter:
        print(evaluate.evaluate(segmenter, str(out), evaluate.validating(shared), runs / "evaluate", 5))


def check_kit(path: Path, cases: Sequence[Case]) -> None:
    """Raise an `InputError` if a kit is not that of these cases which `go` would write: perhaps it is one's own."""
    held = kit.read(path)
    split = by_patient(cases, VALIDATION)
    columns = (held.source.tolist(), held.case.tolist(), held.split.tolist())
    there = set(zip(*columns, strict=True))
    if there != {(case.source, case.name, split[case.group]) for case in cases}:
        what = "of other data than --shared, or split otherwise"
    elif (
        held.image.shape[1] != SIZE
        or round(float(held.pixel_mm.min()), 3) != PIXEL_MM
        or not np.array_equal(held.level_hu, kit.levels(LEVEL_HU))
    ):
        what = f"on another grid than {SIZE} pixels of {PIXEL_MM:g} mm, or of other levels than {LEVEL_HU:g} HU apart"
    else:
        return
    raise InputError(f"{path}: is a kit {what}; choose another folder with -o, or remove it")


@plain_errors()
def main() -> None:
    """Parse the command line and go."""
    parser = parser_of(__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder of the data")
    parser.add_argument("-o", "--runs", type=Path, required=True, help="folder of the kit and the runs")
    parser.add_argument("--start", default="default", help="model to imitate, name or folder (default)")
    parser.add_argument("--out", type=Path, help="folder of the model (RUNS/model)")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps (1)")
    args = parser.parse_args()
    go(args.shared, args.runs, args.start, args.out or args.runs / "model", args.share)


if __name__ == "__main__":
    main()
