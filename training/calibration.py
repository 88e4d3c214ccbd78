"""Put slices of training patients into a model's folder: trtseg accepts and calibrates engines with them.

    python -m training.calibration trtseg/models/default --png ../shared/data/lits_slices

Only LiTS is used, whose licence allows it to be given away (CC BY-SA 4.0), and none of its validation patients. Of each
patient the slice with the largest tumour is taken, then of some the largest liver without one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.cases import Case, read_checked
from training.program import parser_of, plain_errors
from training.readers import png_slices
from training.split import LITS_SOURCES, VALIDATION_GROUPS, by_patient
from trtseg import _core, models
from trtseg.engines.base import logits_of
from trtseg.engines.calibration import FILE, open_reference, pack_slices
from trtseg.errors import InputError
from trtseg.fit import Fit
from trtseg.io.atomic import atomic
from trtseg.models import manifest
from trtseg.spec import ModelSpec

SLICES = 8
#: Field of view in mm that is assumed for slices of unknown spacing.
FIELD_MM = 384.0

ABOUT = (
    "Axial CT slices of training patients of the LiTS challenge (Bilic et al., The Liver Tumor Segmentation Benchmark, "
    "2023; re-released in the Medical Segmentation Decathlon under CC BY-SA 4.0), brought to the grid of the nets: "
    "{names}. They come from 8-bit pictures of the window [-160, 240] HU, so values beyond it are cut off. The spacing "
    "is not known; a field of view of {field:g} mm is assumed."
)


def choose(cases: Sequence[Case]) -> list[tuple[str, np.ndarray]]:
    """Name and HU int16 ``[Y, X]`` of the slices, of training patients of LiTS."""
    split = by_patient(cases, VALIDATION_GROUPS)
    ill: dict[str, tuple[int, str, np.ndarray]] = {}  # patient to pixels, name and slice
    well: dict[str, tuple[int, str, np.ndarray]] = {}
    for case in cases:
        if case.source not in LITS_SOURCES or split[case.group] != "train":
            continue
        try:
            scan = read_checked(case)
        except InputError:  # without labels
            continue
        tumour, liver = ((scan.label >= label).sum((1, 2)) for label in (2, 1))
        for best, pixels in ((ill, tumour), (well, np.where(tumour == 0, liver, 0))):
            i = int(pixels.argmax())
            if pixels[i] > best.get(case.group, (0,))[0]:
                best[case.group] = int(pixels[i]), f"{case.name} slice {scan.z[i]}", scan.hu[i]
    ordered = [sorted(best.values(), key=lambda found: -found[0]) for best in (ill, well)]
    chosen = [*ordered[0][: SLICES - 3], *ordered[1]][:SLICES]
    if not chosen:
        raise InputError("calibration: no slices with liver of training patients of LiTS; give their folder")
    return [(name, hu) for _, name, hu in chosen]


def on_grid(hu: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Bring a slice ``[Y, X]`` to the net's grid ``[H, W]``; its pixels count as square."""
    out, x = np.empty((1, *spec.size), np.int16), np.empty((1, 1, *spec.size), np.float32)
    fit = Fit.whole_field_of_view((hu.shape[0], hu.shape[1]), (1.0, 1.0), spec.size)
    _core.prepare(np.ascontiguousarray(hu[None]), fit, spec.window, out, x)
    return out[0]


def add_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by name into a model's folder, and their hashes into its manifest."""
    spec = models.find(folder).spec
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = manifest.to_json(dataclasses.replace(spec, sha256={**spec.sha256, **hashes}))
    with atomic(*(folder / name for name in files), folder / "model.json") as paths:
        for path, data in zip(paths, [*files.values(), text.encode()], strict=True):
            path.write_bytes(data)


def add(folder: Path, cases: Sequence[Case]) -> str:
    """Write the slices with the FP32 reference's logits into a model's folder, and their hash into its manifest.

    Returns
    -------
    str
        What was written, in a sentence.
    """
    files = models.find(folder)
    nets = files.spec.nets
    chosen = choose(cases)
    engines = {spec.role: open_reference(files, spec) for spec in nets}
    data = pack_slices(
        np.stack([on_grid(hu, nets[0]) for _, hu in chosen]),
        (FIELD_MM / nets[0].size[0], FIELD_MM / nets[0].size[1]),
        nets,
        lambda spec, x: logits_of(engines[spec.role], x),
        ABOUT.format(names=", ".join(name for name, _ in chosen), field=FIELD_MM),
    )
    add_files(folder, {FILE: data})
    return f"{folder / FILE}: {len(chosen)} slices, {len(data) / 1e3:.0f} kB"


@plain_errors()
def main() -> None:
    """Parse the command line and write the slices."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path, help="folder of an exported model")
    parser.add_argument("--png", type=Path, required=True, help="folder lits_slices")
    args = parser.parse_args()
    print(add(args.model, png_slices(args.png)))


if __name__ == "__main__":
    main()
