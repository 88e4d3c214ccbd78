"""What the search for the liver (``trtseg segment --search-mm``) saves, and what it does to the labels.

    python -m benchmarks.search ../shared/data [--mm 10,20,40] [--precision auto] [--only long]

The CTs with truth are chaos3, ircadb01, totalseg_example, amos0001 (ten slices), and `long`, a scan from pelvis to
neck: chaos3 between slices without liver of other patients, who validate, each slice several times. For each distance
of the first slices, 0 for no search, it prints how many slices were labelled, processor seconds from the CT in memory
to the result, Dice with the truth, and how many voxels differ from those without search: as the nets have them, and as
the result has them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

import trtseg
from benchmarks.compare_cts import dice
from training.cases import Scan, read_checked
from training.evaluate import validating
from training.program import parser_of, plain_errors
from trtseg.cascade.volumes import label_volume
from trtseg.result import conclude

WHOLE = ("chaos3", "ircadb01", "totalseg", "amos0001")
#: What lies below chaos3, and above it, from the feet to the head.
PARTS = ("pelvis", "lower_abdomen"), ("chest", "upper_chest", "neck_or_upper_chest", "neck_shoulder", "neck")
MORE = 156  # slices, below and above


def scans(shared: Path) -> Iterator[tuple[str, Scan, bool]]:
    """Name, scan, and whether the truth knows tumours."""
    cases = validating(shared)
    for case in cases:
        if case.name in WHOLE:
            scan = read_checked(case)
            yield case.name, scan, case.labels_tumour
            if case.name == "chaos3":
                others = [[c for part in parts for c in cases if c.body_part == part] for parts in PARTS]
                below, above = ([read_checked(c) for c in found] for found in others)
                hu = np.concatenate([fitted(below, scan), scan.hu, fitted(above, scan)])
                truth = np.pad(scan.label, ((MORE, MORE), (0, 0), (0, 0)))
                yield "long", Scan(hu, truth, scan.spacing, range(len(hu))), False


def fitted(slices: Sequence[Scan], to: Scan) -> np.ndarray:
    """Slices on the grid of another scan, each so often that there are `MORE`."""
    rows, columns = to.hu.shape[1:]
    planes = []
    for n in range(MORE):
        one = slices[n * len(slices) // MORE]
        zoom = [has / wants for has, wants in zip(one.spacing[1:], to.spacing[1:], strict=True)]
        plane = ndimage.zoom(one.hu[0], zoom, order=1)[:rows, :columns]
        missing = [(rows - plane.shape[0]) // 2, (columns - plane.shape[1]) // 2]
        around = [(a, b - a - n) for a, b, n in zip(missing, (rows, columns), plane.shape, strict=True)]
        planes.append(np.pad(plane, around, constant_values=-1000))
    return np.stack(planes)


@plain_errors()
def main() -> None:
    """Parse the command line, measure, print."""
    parser = parser_of(__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--mm", type=lambda text: [float(mm) for mm in text.split(",")], default=[10, 20, 40])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", choices=("long", *WHOLE))
    args = parser.parse_args()
    segmenter = trtseg.Segmenter(precision=args.precision)
    print(
        "| CT | search, mm | slices labelled | s | Dice liver | Dice tumour | voxels other, nets | result |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, scan, knows_tumour in scans(args.shared):
        if args.only not in (None, name):
            continue
        volume = trtseg.load(scan.hu, spacing=scan.spacing)
        first: tuple[np.ndarray, np.ndarray] | None = None
        for mm in (0.0, *args.mm):
            start = time.process_time()
            labels, logits, stages, labelled = label_volume(segmenter._cascade, volume, None, mm)
            nets = labels.copy()
            result = conclude(labels, volume, segmenter.postprocess, stages, {}, logits).canonical
            seconds = time.process_time() - start
            first = first or (nets, result)
            other = [np.count_nonzero(a != b) for a, b in zip((nets, result), first, strict=True)]
            scores = dice(result, scan.label)
            tumour = f"{scores['tumour']:.4f}" if knows_tumour and scores["tumour"] is not None else ""
            print(
                f"| {name}, {volume.spacing[0]:g} mm | {mm:g} | {labelled} of {len(nets)} | {seconds:.1f} "
                f"| {scores['liver']:.4f} | {tumour} | {other[0]} | {other[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
