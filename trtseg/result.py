"""The result of segmenting a CT: labels on the input's own grid, measurements, and files of both."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from trtseg.errors import ArgumentError
from trtseg.io import atomic, check_target, save
from trtseg.io.dicom import DicomSeries
from trtseg.io.dicom_out import check_kinds, check_result, file_names, left_over, write_dicom
from trtseg.io.names import SEG
from trtseg.labels.components import Array, bounding_box, count_voxels
from trtseg.labels.lesions import Lesion, lesions
from trtseg.labels.postprocess import PostProcess, postprocess
from trtseg.labels.probability import TumourLogits
from trtseg.labels.whole import check_liver
from trtseg.notice import NOTICE
from trtseg.volume import Geometry, Volume, check_on_grid, spacing_mm
from trtseg.warnings import ResultWarning

#: Version of the report's layout; raised when a key changes its meaning or goes away.
REPORT_VERSION = 1

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Page:
    """An HTML page that a notebook shows in a frame of its own."""

    html: str
    height: int

    def __repr__(self) -> str:  # what a terminal shows, and a notebook keeps beside the frame
        return f"<Page of {len(self.html)} characters for a notebook; to a file: save(..., html=...)>"

    def _repr_html_(self) -> str:
        inside = escape(self.html)
        return (
            f'<iframe srcdoc="{inside}" sandbox="allow-scripts" width="100%" height="{self.height}"></iframe>'
        )


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The liver and its lesions in one CT.

    Attributes
    ----------
    geometry : Geometry
        The input's own grid.
    canonical : ndarray
        uint8 ``[Z, Y, X]`` in canonical order: 0 background, 1 liver, 2 tumour. `labels` shows the same array
        on the input's grid.
    name : str
        File name of the input without its folder.
    liver_ml, tumour_ml : float
        Volume of the liver with its tumours (labels 1 and 2), and of the tumours (label 2), in millilitres.
    lesions : tuple of Lesion
        Every 26-connected tumour component, largest first.
    postprocess : dict
        The effect of each post-processing step.
    timings : dict
        Seconds in each stage.
    provenance : dict
        How the labels were made: model, hashes of its nets, versions, device, precision, thresholds.
    volume : Volume or None
        The CT that was segmented, for the preview. It is not copied, and stays in memory as long as this result:
        ``dataclasses.replace(result, volume=None)`` gives a result that lets go of the CT.
    warnings : tuple of ResultWarning
        What the volumes may be wrong by: what was strange about the CT, and then about the labels.
    """

    geometry: Geometry
    canonical: Array
    name: str
    liver_ml: float
    tumour_ml: float
    lesions: tuple[Lesion, ...]
    postprocess: dict[str, Any]
    timings: dict[str, float]
    provenance: dict[str, Any]
    volume: Volume | None = None
    warnings: tuple[ResultWarning, ...] = ()

    @classmethod
    def measure(
        cls,
        labels: Array,
        volume: Volume,
        *,
        steps: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        provenance: dict[str, Any] | None = None,
        logits: TumourLogits | None = None,
    ) -> Segmentation:
        """Measure ``labels`` and keep them with the CT that they belong to, both without a copy.

        Parameters
        ----------
        labels : ndarray
            uint8 ``[Z, Y, X]``, canonical: 0 background, 1 liver, 2 tumour.
        volume : Volume
            The CT that was segmented.
        steps : dict, optional
            The report of `trtseg.labels.postprocess.postprocess`.
        timings, provenance : dict, optional
            See the attributes. The time for measuring is added to the timings, as ``measure``.
        logits : TumourLogits, optional
            What the tumour net said, for the probabilities of the lesions.

        Raises
        ------
        ArgumentError
            If ``labels`` are not labels on the volume's grid.
        """
        start = time.perf_counter()
        check_on_grid(labels, volume)
        found = lesions(labels, volume.affine, logits)
        liver, tumour = (n * volume.voxel_ml for n in count_voxels(labels[bounding_box(labels)]))
        warned = tuple(check_liver(labels, volume.array, volume.spacing, liver, steps or {}))
        return cls(
            geometry=volume.geometry,
            canonical=labels,
            name=volume.name,
            liver_ml=liver,
            tumour_ml=tumour,
            lesions=found,
            postprocess=dict(steps or {}),
            timings={**(timings or {}), "measure": time.perf_counter() - start},
            provenance=dict(provenance or {}),
            volume=volume,
            warnings=volume.warnings + warned,
        )

    @property
    def labels(self) -> Array:
        """Labels, uint8, on the input's own grid, in its shape and index order.

        A view of `canonical`, whose strides may be negative: ``torch.from_numpy`` wants a copy.
        """
        return self.geometry.restore(self.canonical)

    @property
    def affine(self) -> Array:
        """Input index ``(i, j, k)`` to RAS mm, 4x4 float64: the affine of `labels`."""
        return self.geometry.affine

    @property
    def burden(self) -> float:
        """Tumour volume as a fraction of the liver's; 0 without a liver."""
        return self.tumour_ml / self.liver_ml if self.liver_ml > 0 else 0.0

    def __repr__(self) -> str:
        return f"<Segmentation of {self.name}: {self.summary()}>"

    def summary(self) -> str:
        """Say the result in one line, without the name."""
        if self.liver_ml == 0:
            return "no liver found"
        count = len(self.lesions)
        return (
            f"liver {self.liver_ml:.1f} mL, tumour {self.tumour_ml:.1f} mL ({self.burden:.1%}), "
            f"{count} lesion{'s' * (count != 1)}"
        )

    def report(self) -> dict[str, Any]:
        """Return name, measurements, warnings, timings and provenance, as a dict that can be stored as JSON.

        Volumes are in mL, distances in mm and times in seconds. ``slices`` count from 0, feet to head, both
        ends included. ``diameter_mm`` is the largest distance between the centres of two voxels of the lesion
        that lie on one axial slice, ``diameter_slice``; ``short_mm`` is the longest diameter perpendicular to it there.
        ``probability`` is the mean over the lesion of what the tumour net calls the probability of tumour, 0 to 1; None
        if the labels came without it. Of a CT that was read from DICOM, ``input`` has ``series``, the volume that was
        taken, as ``--series`` takes it, and ``series_number``.
        """
        source = self.geometry.source
        measured = [
            {
                "volume_ml": round(lesion.volume_ml, 4),
                "voxels": lesion.voxels,
                "diameter_mm": round(lesion.diameter_mm, 4),
                "short_mm": round(lesion.short_mm, 4),
                "diameter_slice": lesion.diameter_slice,
                "centroid_ras_mm": [round(mm, 2) for mm in lesion.centroid],
                "slices": list(lesion.slices),
                "probability": None if lesion.probability is None else round(lesion.probability, 4),
            }
            for lesion in self.lesions
        ]
        chances = [lesion.probability for lesion in self.lesions if lesion.probability is not None]
        timings = {**self.timings, "total": sum(self.timings.values())}
        return {
            "schema": REPORT_VERSION,
            "notice": NOTICE,
            "input": {
                "name": self.name,
                "shape": list(self.geometry.shape),
                "spacing_mm": [round(mm, 6) for mm in spacing_mm(self.affine)],
                **(source.told() if isinstance(source, DicomSeries) else {}),
            },
            "liver_ml": round(self.liver_ml, 4),
            "tumour_ml": round(self.tumour_ml, 4),
            "tumour_burden": round(self.burden, 6),
            "lesion_count": len(self.lesions),
            "largest_mm": round(max((lesion.diameter_mm for lesion in self.lesions), default=0.0), 4),
            "highest_probability": round(max(chances), 4) if chances else None,
            "lesions": measured,
            "warnings": [warning._asdict() for warning in self.warnings],
            "postprocess": self.postprocess,
            "timings_s": {stage: round(s, 4) for stage, s in timings.items()},
            "provenance": self.provenance,
        }

    def save(
        self,
        path: _PathLike,
        *,
        report: _PathLike | None = None,
        preview: _PathLike | None = None,
        html: _PathLike | None = None,
        keep_identity: bool = False,
    ) -> None:
        """Write the labels, and the other files that are named; all files appear, complete, or none does.

        Parameters
        ----------
        path : path
            ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``: the labels on the input's own grid, with the input's header if
            both are NIfTI. ``.dcm``: a DICOM segmentation, if the input is a DICOM series. A file of that name is
            replaced, whatever it is: the CT too.
        report : path, optional
            JSON file for `report`.
        preview : path, optional
            PNG file: outlines on slices of the CT.
        html : path, optional
            HTML file: the CT with outlines in three planes, and all measurements, see `trtseg.report.case`.
        keep_identity : bool
            The HTML file shows the name of the input, which may tell who the patient is.

        Raises
        ------
        OutputError
            If a file cannot be written; if it is DICOM, also if the input is no DICOM series, or has no liver.
        ArgumentError
            If a preview or a page is asked for, but the result has let go of its CT.
        """
        check_target(path)
        others = self._others(report, preview, html, keep_identity)
        with atomic(path, *(other for other, _ in others)) as (labels, *parts):
            if os.fspath(path).lower().endswith(SEG):
                write_dicom([("seg", labels)], self)
            else:
                fingerprint = str(self.provenance.get("fingerprint", ""))
                save(labels, self.canonical, self.geometry, fingerprint)
            for part, (_, write) in zip(parts, others, strict=True):
                write(part)

    def save_dicom(
        self,
        folder: _PathLike,
        kinds: Iterable[str] = ("seg", "sr", "sc"),
        *,
        report: _PathLike | None = None,
        preview: _PathLike | None = None,
        html: _PathLike | None = None,
        keep_identity: bool = False,
    ) -> tuple[Path, ...]:
        """Write DICOM objects that belong to the study of the input; all files appear, complete, or none does.

        Parameters
        ----------
        folder : path
            A folder that exists. Earlier objects of these kinds in it are replaced; those of other kinds stay, but for
            an ``sr.dcm`` of trtseg on a Segmentation that is replaced.
        kinds : str or iterable of str
            ``seg``: ``seg.dcm``, a Segmentation. ``labelmap``: ``labelmap.dcm``, the same as a Label Map, which
            few viewers read. ``sr``: ``sr.dcm``, a report on the Segmentation. ``sc``:
            ``sc_0001.dcm`` and so on, pictures with outlines every 5 mm, for viewers that show no Segmentation.
        report, preview, html, keep_identity
            As for `save`.

        Returns
        -------
        tuple of Path
            The DICOM files.

        Raises
        ------
        OutputError
            If the input is no DICOM series, there is no liver, or a file cannot be written.
        ArgumentError
            If a kind is unknown, ``sr`` comes without ``seg``, or the result has let go of the CT to draw on.
        """
        from trtseg.report.captures import draw_captures, drawn_slices

        kinds = check_kinds(kinds)
        check_result(self)
        others = self._others(report, preview, html, keep_identity)
        slices = drawn_slices(self.canonical, self.geometry.spacing[0], self.lesions)
        files = file_names(kinds, len(slices))
        paths = tuple(Path(folder, name) for _, name in files)
        left = left_over(Path(folder), [path.name for path in paths])
        with atomic(*paths, *(other for other, _ in others), without=left) as parts:
            pictures = draw_captures(self._kept_volume(), self.canonical, slices) if "sc" in kinds else ()
            write_dicom([(kind, part) for (kind, _), part in zip(files, parts, strict=False)], self, pictures)
            for part, (_, write) in zip(parts[len(files) :], others, strict=True):
                write(part)
        return paths

    def save_report(self, path: _PathLike) -> None:
        """Write `report` as JSON, completely or not at all; OutputError if writing fails."""
        with atomic(path) as (temporary,):
            self._write_report(temporary)

    def save_preview(self, path: _PathLike) -> None:
        """Write a PNG with the outlines on slices of the CT, completely or not at all.

        Raises
        ------
        OutputError
            If the file cannot be written.
        ArgumentError
            If the result has let go of its CT.
        """
        with atomic(path) as (temporary,):
            self._write_preview(temporary)

    def view(self, height: int = 900) -> Page:
        """Return the page of `save`, with the input's name, for a notebook to show ``height`` pixels high.

        Raises
        ------
        ArgumentError
            If the result has let go of its CT.
        """
        return Page(self._page(keep_identity=True).decode("utf-8"), height)

    def _repr_html_(self) -> str:
        """Numbers, warnings and slices with outlines, for notebooks; `view` returns the page to look around in."""
        from trtseg.report.pages import snippet

        texts = [warning.text for warning in self.warnings]
        picture = None
        if self.volume is not None:
            from trtseg.report.pictures import preview_png

            picture = preview_png(self.volume, self.canonical, self.summary(), tile=220)
        return snippet(self.name, self.summary(), texts, picture)

    def _others(
        self, report: _PathLike | None, preview: _PathLike | None, html: _PathLike | None, keep_identity: bool
    ) -> list[tuple[_PathLike, Callable[[Path], None]]]:
        """The files that are asked for beside the labels, and what writes each; ArgumentError if the CT is missing."""
        if preview is not None or html is not None:
            self._kept_volume()

        def write_page(part: Path) -> None:
            part.write_bytes(self._page(keep_identity))

        writers = (report, self._write_report), (preview, self._write_preview), (html, write_page)
        return [(path, write) for path, write in writers if path is not None]

    def _page(self, keep_identity: bool) -> bytes:
        from trtseg.report.case import case_html

        volume, report = self._kept_volume(), self.report()
        return case_html(volume, self.canonical, self.lesions, report, keep_identity=keep_identity)

    def _kept_volume(self) -> Volume:
        if self.volume is None:
            raise ArgumentError(
                "preview, html: got a result without its CT; expected a volume to draw on, save pictures before "
                "letting go of it, or use dataclasses.replace(result, volume=trtseg.load(path))"
            )
        return self.volume

    def _write_report(self, path: Path) -> None:
        text = json.dumps(self.report(), indent=2, allow_nan=False, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8", errors="replace")  # a file name may not be Unicode

    def _write_preview(self, path: Path) -> None:
        from trtseg.report.pictures import preview_png

        texts = [warning.text for warning in self.warnings]
        path.write_bytes(preview_png(self._kept_volume(), self.canonical, self.summary(), texts))


def conclude(
    labels: Array,
    volume: Volume,
    steps: PostProcess,
    timings: dict[str, float],
    provenance: dict[str, Any],
    logits: TumourLogits | None,
) -> Segmentation:
    """Clean the labels ``[Z, Y, X]`` of the nets in place, and measure them.

    Parameters
    ----------
    timings, provenance, logits
        As for `Segmentation.measure`; the time for cleaning is added.
    """
    start = time.perf_counter()
    report = postprocess(labels, volume.voxel_ml, volume.spacing[0], steps)
    timings = {**timings, "postprocess": time.perf_counter() - start}
    return Segmentation.measure(
        labels, volume, steps=report, timings=timings, provenance=provenance, logits=logits
    )
