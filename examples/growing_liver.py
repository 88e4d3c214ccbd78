"""Watch a folder into which a scanner writes its slices, and print liver and tumour while they grow.

    python examples/growing_liver.py FOLDER [--quiet 3]

The files are DICOM, a slice each, appear complete (written elsewhere and renamed), and belong to one series, in any
order.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import trtseg
from trtseg.errors import InputError
from trtseg.io.dicom import read_slice
from trtseg.stream import Stream


def arriving(folder: Path, quiet: float) -> Iterator[Path]:
    """Yield the files of a folder as they come, until no file has come for ``quiet`` seconds."""
    seen: set[Path] = set()
    last = time.monotonic()
    while time.monotonic() - last < quiet:
        for path in sorted(set(folder.iterdir()) - seen):
            seen.add(path)
            yield path
            last = time.monotonic()
        time.sleep(0.02)


def main(folder: Path, quiet: float, model: str) -> None:
    """Segment the slices as they come."""
    stream: Stream | None = None

    def show(*_: object) -> None:
        assert stream is not None
        labelled = stream.counts[1]
        print(
            f"{labelled} slices: liver {stream.liver_ml:.0f} mL, tumour {stream.tumour_ml:.0f} mL", flush=True
        )

    with ExitStack() as stack:
        segmenter = stack.enter_context(trtseg.Segmenter(model))
        for path in arriving(folder, quiet):
            header, hu = read_slice(path)
            if stream is None:
                directions = header.ImageOrientationPatient
                stream = stack.enter_context(
                    segmenter.stream(
                        hu.shape, spacing=header.PixelSpacing, directions=directions, on_labels=show
                    )
                )
            stream.push(hu, header.ImagePositionPatient)
        if stream is None:
            raise InputError(f"{folder}: no file came for {quiet:g} s; begin the scan, or raise --quiet")
        result = stream.finish()
        stream.close()  # after the last line of `show`
        print(result.summary())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quiet", type=float, default=3.0, help="seconds without a file that end the scan")
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"FOLDER: got {options.folder}; expected a folder, into which the slices are written")
    try:
        main(**vars(options))
    except trtseg.TrtsegError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
