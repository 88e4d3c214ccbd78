"""Which spoilt CTs trtseg warns of: ``python -m benchmarks.robustness DATA`` prints a Markdown table.

DATA is a folder with public CTs where `CTS` says; the sample CT of `trtseg.sample` comes from the cache, or through
pip. Each CT is spoilt in each way of the table, put into an image in memory, and given to `trtseg.load`, or to
`Segmenter.segment` where the kind says so: no check is called by itself. A case is *warned of* if there is a warning
that the CT as it is does not have. Livers cut at an end may have the same (right) one.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import trtseg
from training.archive import unpack
from training.program import parser_of, plain_errors
from trtseg import sample
from trtseg.errors import InputError
from trtseg.io.find import find_cts
from trtseg.warnings import CODES

#: Where the CTs lie below DATA; of an archive, its first folder of DICOM files.
CTS = (
    "chaos3/volume.nii.gz",
    "ircadb01/PATIENT_DICOM.tar.xz",
    "crlm1006/image.tar.xz",
    "totalseg_example/example_ct.nii.gz",
    "amos0001/DICOM.tar.xz",
)
#: Warnings that are right for a CT as it is: the liver reaches the first or the last slice.
RIGHT = dict.fromkeys(("chaos3", "totalseg_example", "amos0001", "sample"), ("liver-cut",))
VERDICTS = ("warned", "refused", "silent")
Cases = Iterator[tuple[str, Any]]
Kinds = defaultdict[str, Counter[str]]


def values(hu: np.ndarray) -> Cases:
    """HU ``[Z, Y, X]`` spoilt as conversions spoil them."""
    h = hu.astype(np.int32)
    yield "intercept applied twice (-1024)", h - 1024
    yield "HU less 1000", h - 1000
    yield "HU less 512", h - 512
    yield "rescale not applied (+1024)", h + 1024
    yield "HU plus 1000", h + 1000
    yield "rescale not applied, negative values lost", (h + 1024).clip(0)
    yield "rescale not applied, padding of -2000 around a circle", circle(h + 1024, -2000)
    yield "padding of 3000 around a circle", circle(h, 3000)
    yield "times two", h * 2
    yield "halved", h // 2
    yield "times ten", h * 10
    yield "negated", -h
    yield "8-bit export of the window -160 to 240", (h.clip(-160, 240) + 160) * 255 // 400
    yield "the same less 128", (h.clip(-160, 240) + 160) * 255 // 400 - 128
    yield "8-bit export of the window -1000 to 1000", (h.clip(-1000, 1000) + 1000) * 255 // 2000
    yield "clipped to -160 to 240", h.clip(-160, 240)
    yield "clipped to -200 to 300", h.clip(-200, 300)
    yield "scaled to 0 to 1000", (h.clip(-1000, 1000) + 1000) // 2
    yield "z-scores times 100", ((h - h.mean()) / h.std() * 100).astype(np.int32)
    yield "all but tissue set to 0", np.where(h < -400, 0, h)


def circle(values: np.ndarray, padding: int) -> np.ndarray:
    """Put padding in the corners of slices."""
    y, x = (np.linspace(-1, 1, n) for n in values.shape[1:])
    return np.where(y[:, None] ** 2 + x**2 > 1, padding, values)


def headers(hu: np.ndarray, affine: np.ndarray) -> Cases:
    """Images whose header has lost the geometry, or contradicts itself."""
    unit = affine / np.r_[np.linalg.norm(affine[:3, :3], axis=0), 1]
    zeros = {"srow_x": 0, "srow_y": 0, "srow_z": 0}
    pixdim = image(hu, affine).header["pixdim"] * [1, 1, 1, 2, 1, 1, 1, 1]
    yield "identity matrix", image(hu, np.eye(4))
    yield "1 x 1 x 1 mm, no origin", image(hu, np.diag([-1, -1, 1, 1]))
    yield "1 x 1 x 1 mm, the rest as it was", image(hu, unit)
    yield "neither sform nor qform", image(hu, affine, sform_code=0, qform_code=0)
    yield "sform of zeros, good qform", image(hu, affine, **zeros)
    yield "sform of zeros, no qform", image(hu, affine, qform_code=0, **zeros)
    yield "qform turned against the sform", image(hu, affine, quatern_d=0)
    yield "qform begins 50 mm beside the sform", image(hu, affine, qoffset_x=affine[0, 3] + 50)
    yield "pixdim has twice the slice distance of the sform", image(hu, affine, pixdim=pixdim)


def orientations(hu: np.ndarray, affine: np.ndarray) -> Cases:
    """The 47 wrong orientations: the header says the usual one of an array that was turned or mirrored."""
    mm = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            if (axes, flips) != ((0, 1, 2), (1, 1, 1)):
                kind = "axes swapped (40 ways)" if axes != (0, 1, 2) else "only reversed (7 ways)"
                turned = hu.transpose(axes)[tuple(slice(None, None, f) for f in flips)]
                yield kind, image(turned, np.diag([*mm[list(axes)][::-1] * (-1, -1, 1), 1]))


def slices(hu: np.ndarray, affine: np.ndarray) -> Cases:
    """A slice doubled or blank, and slices dropped, at five places each."""
    n = len(hu)
    for z in np.linspace(n // 4, 3 * n // 4, 5).astype(int):
        yield "a slice doubled", image(np.insert(hu, z, hu[z], 0), affine)
        yield "a slice blank", image(np.where(np.arange(n)[:, None, None] == z, -1024, hu), affine)
        for count in (1, 2, 3, 5, 10):
            if count < n // 4:
                rest = np.delete(hu, range(z - count // 2, z - count // 2 + count), 0)
                yield f"{count} slice{'s' * (count > 1)} dropped", image(rest, affine)


def livers(hu: np.ndarray, affine: np.ndarray, labels: np.ndarray) -> Cases:
    """Livers cut in the middle of what their labels reach, and a wrong distance of slices that nothing contradicts."""
    z, _, x = (int(np.mean(np.flatnonzero(labels.any(axis=axes)))) for axes in ((1, 2), (0, 2), (0, 1)))
    masked, ended, far = hu.copy(), hu.copy(), affine.copy()
    masked[:, :, :x] = ended[z:] = -1000
    far[:, 2] *= 2
    yield "lower half of the liver", image(hu[:z], affine)
    yield "upper half of the liver", image(hu[z:], affine)
    yield "upper half of the liver blank", image(ended, affine)
    yield "side of the liver cropped", image(hu[:, :, x:], affine)
    yield "side of the liver masked", image(masked, affine)
    yield "slice distance doubled everywhere", image(hu, far)


def image(hu: np.ndarray, affine: np.ndarray, **fields: Any) -> Any:
    """A NIfTI image of ``[Z, Y, X]``, with an affine in both forms, and then with fields of its header set."""
    array = hu.clip(-32768, 32767).astype(np.int16).transpose(2, 1, 0)
    make: Any = nib.Nifti1Image
    header = make(array, affine).header
    header.set_qform(affine, 1)
    for field, value in fields.items():
        header[field] = value
    return make(array, header.get_best_affine(), header)


def cts(data: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the CTs; an archive is unpacked for as long as its CT is in use."""
    for place in CTS:
        name, path = place.split("/")[0], data / place
        if path.suffix != ".xz":
            yield name, path
            continue
        with tempfile.TemporaryDirectory() as folder:
            unpack(path, Path(folder))
            yield name, find_cts(Path(folder))[0][0]
    yield "sample", sample.fetch()


def measure(segmenter: trtseg.Segmenter, ct: str, path: Path) -> tuple[Kinds, str]:
    """Spoil a CT in all ways; what became of each kind, and a line on the CT as it is."""
    kinds: Kinds = defaultdict(Counter)
    volume = trtseg.load(path)
    hu, affine, whole = volume.array, volume.affine, segmenter.segment(volume)

    def tell(kind: str, look: Callable[[Any], Any], spoilt: Any, known: set[str]) -> None:
        try:
            codes = {warning.code for warning in look(spoilt).warnings if warning.text not in known}
        except InputError:
            kinds[kind]["refused"] += 1
        else:
            kinds[kind].update([*codes, "warned" if codes else "silent"])

    known = {warning.text for warning in whole.warnings}
    false = {warning.text for warning in whole.warnings if warning.code not in RIGHT.get(ct, ())}
    revalued = ((kind, image(h, affine)) for kind, h in values(hu) if not np.array_equal(h, hu))
    loaded = (headers(hu, affine), revalued, slices(hu, affine), orientations(hu, affine))
    for kind, spoilt in itertools.chain(*loaded):
        tell(kind, trtseg.load, spoilt, known)
    for kind, spoilt in livers(hu, affine, whole.canonical):
        tell(kind + " (segmented)", segmenter.segment, spoilt, false if "half" in kind else known)
    said = ", ".join(f"`{w.code}` ({'false' if w.text in false else 'right'})" for w in whole.warnings)
    silent = sum(counts["silent"] for counts in kinds.values())
    grid = f"{' x '.join(map(str, hu.shape[::-1]))}, {volume.spacing[0]:.3g} mm"
    return kinds, f"- {ct} ({grid}): warnings as it is: {said or 'none'}; spoilt: {silent} silent"


def show(measured: list[tuple[Kinds, str]]) -> None:
    """Print the table, the total, and the lines on the CTs."""
    kinds: Kinds = defaultdict(Counter)
    for kind, counts in itertools.chain(*(found.items() for found, _ in measured)):
        kinds[kind] += counts
    total = sum(kinds.values(), Counter[str]())
    print("| kind | cases | warned of | refused | silent | warnings |\n|---|---|---|---|---|---|")
    for kind, counts in (*kinds.items(), ("**all**", total)):
        shown = [counts[key] for key in VERDICTS]
        codes = ", ".join(f"`{code}`" for code in CODES if counts[code])
        print(f"| {kind} | {sum(shown)} | {' | '.join(map(str, shown))} | {codes} |")
    share = 1 - total["silent"] / sum(total[key] for key in VERDICTS)
    print(f"\n{share:.1%} of the cases are warned of or refused. The CTs:\n")
    print("\n".join(line for _, line in measured))


@plain_errors()
def main() -> None:
    """Parse the command line, measure, print."""
    parser = parser_of(__doc__)
    parser.add_argument("data", type=Path, help=", ".join(CTS))
    args = parser.parse_args()
    with trtseg.Segmenter() as segmenter:
        show([measure(segmenter, *ct) for ct in cts(args.data)])


if __name__ == "__main__":
    main()
