"""The page of a case: its CT with outlines in three planes, its lesions, and what to think of them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtseg.labels.components import Array, bounding_box
from trtseg.labels.lesions import Lesion
from trtseg.report import pages
from trtseg.report.measured import MEASURED
from trtseg.report.packing import CURVE, Packed, pack
from trtseg.report.pictures import choose_slices, thumbnail
from trtseg.volume import Volume, check_on_grid

#: Width and level in HU. The level of the liver's window is that of the liver at hand.
_WINDOWS = {"Abdomen": (400, 40), "Liver": (150, 60), "Lung": (1500, -600), "Bone": (1800, 400)}
_TITLE = "Liver and its lesions"
_THUMBNAIL = 120  # pixels
_PRINTED = 20  # lesions that have room on paper; ``web/case.css`` hides the others there


def case_html(
    volume: Volume,
    labels: Array,
    lesions: Sequence[Lesion],
    report: Mapping[str, Any],
    *,
    keep_identity: bool,
) -> bytes:
    """Make the page of a case, one HTML file that needs no other.

    Parameters
    ----------
    volume : Volume
        The CT.
    labels : ndarray
        uint8 ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    lesions : sequence of Lesion
        What `trtseg.labels.lesions.lesions` finds in the labels.
    report : mapping
        What `trtseg.result.Segmentation.report` returns for them. Of its texts, warnings, post-processing, timings and
        provenance are shown.
    keep_identity : bool
        Show the name of the input, which may tell who the patient is. Otherwise the page does not hold it.

    Returns
    -------
    bytes
        UTF-8, at most 15 MB.

    Raises
    ------
    ArgumentError
        If ``labels`` are not on the volume's grid.
    """
    check_on_grid(labels, volume)
    packed = pack(volume, labels)
    picture = thumbnail(volume, labels, _THUMBNAIL)
    name = str(report["input"]["name"])
    warnings = [
        (warning["text"] if keep_identity else _anonymous(warning["text"], name), warning["code"])
        for warning in report["warnings"]
    ]
    parts = {
        "facts": pages.data("facts", _facts(report, picture) | {"named": keep_identity}),
        "title": html.escape(name if keep_identity else _TITLE),
        "warnings": pages.warnings(warnings, "outlines"),
        "figures": pages.figures(_figures(report)),
        "lesions": _lesions(lesions, report["lesions"], labels),
        "windows": "".join(
            f'<button type="button" data-width="{width}" data-level="{level}">{window}</button>'
            for window, (width, level) in _windows(volume, labels).items()
        ),
        "joined": _joined(packed.step),
        "made": _made(report),
        "thumbnail": picture,
        "viewer": pages.data("viewer", _viewer(volume, labels, packed, lesions)),
        "slices": "\n".join(packed.slices),
    }
    return pages.page("case", name if keep_identity else _TITLE, parts, ("viewer", "solid"))


def _anonymous(text: str, name: str) -> str:
    """Name no input in a sentence that it heads; elsewhere ``CT`` or ``1`` are words and numbers, not names."""
    return re.sub(rf"(?<!\S){re.escape(name)}(?=:\s)", "the CT", text)


def _facts(report: Mapping[str, Any], picture: str) -> dict[str, Any]:
    """What a page of many cases says of this one; it stands at the start of the page, see `trtseg.report.index`."""
    return {
        **{name: report[name] for name in MEASURED},
        "warnings": [warning["code"] for warning in report["warnings"]],
        "model": " ".join(
            str(report["provenance"].get(key, "")) for key in ("model", "model_version")
        ).strip(),
        "thumbnail": picture,
    }


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Liver with tumours", f"{report['liver_ml']:.1f} mL"),
        ("Tumour", f"{report['tumour_ml']:.1f} mL"),
        ("Tumour burden", f"{report['tumour_burden']:.1%}"),
        ("Lesions", str(report["lesion_count"])),
    ]


def _lesions(lesions: Sequence[Lesion], measured: Sequence[Mapping[str, Any]], labels: Array) -> str:
    """The table of all lesions, with the numbers of the report, so that all pages show the same."""
    if not lesions:
        return "<p>No lesions were found.</p>"
    box = bounding_box(labels)
    rows = [
        (
            f'<button type="button" data-lesion="{n}" aria-label="Show lesion {n + 1}">{n + 1}</button>',
            f"{one['volume_ml']:.1f}" if one["volume_ml"] >= 1 else f"{one['volume_ml']:.2f}",
            f"{one['diameter_mm']:.1f}",
            f"{one['short_mm']:.1f}",
            "–" if one["probability"] is None else f"{one['probability']:.2f}",
            f"{lesion.diameter_slice} <small>({lesion.slices[0]} to {lesion.slices[1]})</small>",
            _side(_focus(lesion, labels), box),
        )
        for n, (lesion, one) in enumerate(zip(lesions, measured, strict=True))
    ]
    headings = (
        "No.",
        "Volume, mL",
        "Long axis, mm",
        "Short axis, mm",
        "Probability",
        "Slice",
        "Part of the liver",
    )
    note = (
        "Axes are those of the slice with the longest axis. The probability is the mean of what the tumour net says "
        "inside the lesion: how sure the net is that there is a tumour, and not the chance that a lesion is real or "
        "malignant. Slices count from 0 at the feet. The part of the liver is told from the middle of the box around "
        "it; right and left are the patient's."
    )
    table = pages.table("Lesions, largest first", headings, rows, "lesions")
    if len(lesions) > _PRINTED:
        table += f'<p class="print-only">Printed are the {_PRINTED} largest of {len(lesions)}.</p>'
    return f'{table}<p class="note">{note}</p>'


def _side(focus: tuple[int, int, int], box: tuple[slice, slice, slice]) -> str:
    """Say in which eighth of the liver's box a voxel lies."""
    upper, back, left = (2 * at >= axis.start + axis.stop for at, axis in zip(focus, box, strict=True))
    return ", ".join(
        ("left" if left else "right", "back" if back else "front", "upper" if upper else "lower")
    )


def _windows(volume: Volume, labels: Array) -> dict[str, tuple[int, int]]:
    windows = dict(_WINDOWS)
    box = bounding_box(labels)
    plane = (box[0].start + box[0].stop) // 2
    tissue = volume.array[plane][labels[plane] == 1] if box[0].stop else np.zeros(0)
    if tissue.size:
        windows["Liver"] = (150, 10 * round(float(np.median(tissue)) / 10))
    return windows


def _made(report: Mapping[str, Any]) -> str:
    source, made = report["input"], report["provenance"]
    spacing = " × ".join(f"{mm:.4g}" for mm in source["spacing_mm"])
    rows = [("CT", f"{' × '.join(map(str, source['shape']))} voxels of {spacing} mm")]
    if "series_number" in source:  # which viewers show; the id of a series is that of a patient
        rows.append(("SeriesNumber", str(source["series_number"])))
    rows += [
        ("Model", f"{made.get('model', '?')} {made.get('model_version', '')}"),
        *((f"SHA-256 of {file}", digest) for file, digest in made.get("sha256", {}).items()),
        ("Thresholds", _pairs(made.get("thresholds", {}))),
        ("Device and precision", f"{made.get('device', '?')}, {made.get('precision', '?')}"),
    ]
    if "search_mm" in made:
        labelled = f"{made.get('labelled_slices', '?')} slices labelled"
        rows.append(("Search for the liver", f"on slices {made['search_mm']:g} mm apart, {labelled}"))
    rows += [
        ("Steps after the nets", _pairs(report["postprocess"])),
        ("Seconds", _pairs(report["timings_s"])),
        ("Versions", _pairs(made.get("versions", {}))),
        ("Fingerprint", str(made.get("fingerprint", "?"))),
        ("Intended use", str(made.get("intended_use", "?"))),
    ]
    escaped = [(html.escape(name), html.escape(text)) for name, text in rows]
    return pages.table("How the labels were made", (), escaped, "made")


def _joined(step: tuple[int, int, int]) -> str:
    """Say that voxels of the CT are shown as one, if they are."""
    if max(step) == 1:
        return ""
    joined = " × ".join(map(str, step[::-1]))
    return f"One voxel shown is {joined} of the CT: the greys of their first slice, outlines around all."


def _pairs(values: Mapping[str, Any]) -> str:
    """Write a dict as text, also one in another."""
    texts = []
    for key, value in values.items():
        text = f"({_pairs(value)})" if isinstance(value, Mapping) else str(value)
        texts.append(f"{key} {f'{value:.4g}' if isinstance(value, float) else text}".replace("_", " "))
    return ", ".join(texts)


def _viewer(volume: Volume, labels: Array, packed: Packed, lesions: Sequence[Lesion]) -> dict[str, Any]:
    """What the script needs to know; all places are in voxels of what is shown."""
    step = np.array(packed.step)
    scale = np.eye(4)
    scale[:3, :3] = np.diag(step[::-1])
    scale[:3, 3] = (0, *(step[1:] - 1) / 2)[::-1]  # a shown voxel is the mean of its block of a slice
    places = [_focus(lesion, labels) for lesion in lesions]
    start = places[0] if places else (choose_slices(labels, 1)[0], *_middle(labels))

    def shown(end: tuple[float, float]) -> list[float]:
        return [round((at + 0.5) / n - 0.5, 2) for at, n in zip(end, packed.step[1:], strict=True)]

    return {
        "size": labels.shape,
        "shape": packed.shape,
        "step": packed.step,
        "spacing": [mm * n for mm, n in zip(volume.spacing, packed.step, strict=True)],
        "affine": (volume.affine @ scale).tolist(),
        "curve": CURVE,
        "box": packed.box,
        "labels": packed.labels,
        "start": [n // k for n, k in zip(start, packed.step, strict=True)],
        "lesions": [
            {
                "focus": [n // k for n, k in zip(place, packed.step, strict=True)],
                "lines": [[shown(end) for end in line] for line in lesion.axes],
            }
            for place, lesion in zip(places, lesions, strict=True)
        ],
    }


def _focus(lesion: Lesion, labels: Array) -> tuple[int, int, int]:
    """Find a tumour voxel ``(z, y, x)`` on the lesion's long axis, as near to the middle of it as there is."""
    ends = np.array(lesion.axes[0])
    for t in sorted(np.linspace(0, 1, 401), key=lambda t: abs(t - 0.5)):
        y, x = np.rint(ends[0] + t * (ends[1] - ends[0])).astype(int).tolist()
        if labels[lesion.diameter_slice, y, x] == 2:
            break
    return lesion.diameter_slice, y, x


def _middle(labels: Array) -> tuple[int, int]:
    box = bounding_box(labels)
    if box[1].stop == 0:
        return labels.shape[1] // 2, labels.shape[2] // 2
    return (box[1].start + box[1].stop) // 2, (box[2].start + box[2].stop) // 2
