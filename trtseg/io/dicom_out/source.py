"""What every object takes over from its source: the patient, the study, and the slices that it refers to."""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import OutputError
from trtseg.io.dicom import DicomSeries
from trtseg.io.dicom.frames import CT_IMAGE, Slice
from trtseg.io.dicom.header import text
from trtseg.io.dicom_out.codes import decimal, new_uid
from trtseg.io.dicom_out.encoding import element, item
from trtseg.volume import Geometry

_STUDY = (
    "StudyDate", "StudyTime", "AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName",
    "StudyDescription", "StudyID",
)  # fmt: skip
_PATIENT_GROUPS = (0x0010, 0x0012)  # patient, and clinical trial
#: Elements that an object must have, be they empty.
_NEEDED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_TEXTS = ("LO", "SH", "ST", "LT", "UC", "UT")  # in the header's character set; names keep their bytes anyway
_CLASS = re.compile(r"(?=.{3,64}$)[012](\.\d+)+", re.ASCII)
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)  # letters too, which careless anonymous copies have there
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@dataclass(frozen=True, eq=False)
class Reference:
    """An instance, or a frame of a multi-frame instance, that is a slice of the source."""

    sop_class: str
    sop_instance: str
    frame: int | None  # from 1; None for an instance with one picture
    position: tuple[float, float, float]  # centre of the first voxel, LPS mm

    def item(self) -> Any:
        """Refer to the instance."""
        from pydicom import Dataset

        made = Dataset()
        made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = self.sop_class, self.sop_instance
        return made

    def encoded(self, *more: bytes) -> bytes:
        """`item` in Explicit VR Little Endian, with more elements behind its own."""
        return item(
            element(0x00081150, b"UI", self.sop_class.encode()),
            element(0x00081155, b"UI", self.sop_instance.encode()),
            *more,
        )


@dataclass(frozen=True, eq=False)
class Source:
    """A series that objects are made for.

    Attributes
    ----------
    header : pydicom.Dataset
        Of the first file that says whose it is.
    slices : tuple of Reference
        Slice by slice of the grid ``[column, row, slice]``.
    shape : (int, int)
        Rows and columns.
    orientation : tuple of float
        As in ImageOrientationPatient.
    spacing : (float, float, float)
        Millimetres between slices, rows and columns.
    thickness : float
        SliceThickness, mm; the distance of slices where the source has none.
    study, series, frame_of_reference : str
        UIDs; made up where the source has none.
    """

    header: Any
    slices: tuple[Reference, ...]
    shape: tuple[int, int]
    orientation: tuple[float, ...]
    spacing: tuple[float, float, float]
    thickness: float
    study: str
    series: str
    frame_of_reference: str

    def number(self, offset: int) -> int:
        """Number for a new series: 301 for offset 1 of series 3."""
        try:
            own = int(float(text(self.header, "SeriesNumber") or 0))
        except (ValueError, OverflowError):  # 1e400, for example
            own = 0
        return (own if 0 < own < 10_000_000 else 90) * 100 + offset

    def stub(self, k: int) -> Any:
        """Make what highdicom takes for the header of a slice, a picture of its own, without the patient.

        highdicom logs and refuses names and dates that it finds strange, so it never sees them.
        """
        from pydicom import Dataset

        made = Dataset()
        made.SOPClassUID, made.SOPInstanceUID = CT_IMAGE, self.slices[k].sop_instance
        made.StudyInstanceUID, made.SeriesInstanceUID = self.study, self.series
        made.FrameOfReferenceUID = self.frame_of_reference
        made.Modality = "CT"
        made.Rows, made.Columns = self.shape
        made.ImagePositionPatient = [decimal(x) for x in self.slices[k].position]
        made.ImageOrientationPatient = [decimal(x) for x in self.orientation]
        made.PixelSpacing = [decimal(x) for x in self.spacing[1:]]
        made.SpacingBetweenSlices = decimal(self.spacing[0])
        made.SliceThickness = decimal(self.thickness)
        for keyword in _NEEDED:
            setattr(made, keyword, None)
        for keyword in _LOSSY:
            if keyword in self.header:
                made[keyword] = self.header[keyword]
        return made

    def dress(self, dataset: Any) -> None:
        """Copy patient and study into an object, as they stand in the source."""
        elements = [tag for tag in self.header.keys() if _is_of_patient(tag)]  # noqa: SIM118 - not elements
        charset = ("SpecificCharacterSet",) if self.header.get("SpecificCharacterSet") else ()
        for key in (*charset, *_STUDY, *elements):
            if key in self.header:
                try:
                    dataset[key] = _as_it_stands(self.header, key)
                except Exception:  # noqa: S112 - a value that cannot be read is not worth an object
                    continue

    def slice_of(self, geometry: Geometry, z: int) -> int | None:
        """Slice of the source that an axial slice is; None if the source is cut in another direction."""
        if geometry.axes[0] != 2:
            return None
        return len(self.slices) - 1 - z if geometry.flips[0] else z

    def instances(self) -> list[Any]:
        """Refer to each instance of the source."""
        return list({one.sop_instance: one.item() for one in self.slices}.values())

    def refer(self, dataset: Any) -> None:
        """Put references to all of the source, encoded, into an object of `as_read`; pydicom takes much longer."""
        from pydicom.dataelem import RawDataElement
        from pydicom.tag import Tag

        items = b"".join({one.sop_instance: one.encoded() for one in self.slices}.values())
        series = item(element(0x0008114A, b"SQ", items), element(0x0020000E, b"UI", self.series.encode()))
        for keyword, value in (("SourceImageSequence", items), ("ReferencedSeriesSequence", series)):
            tag = Tag(keyword)
            dataset[tag] = RawDataElement(tag, "SQ", len(value), value, 0, False, True)


def dicom_source(geometry: Geometry) -> Source:
    """Find the series that a grid came from.

    Raises
    ------
    OutputError
        If the grid came from anything but a DICOM series.
    """
    series = geometry.source
    if not isinstance(series, DicomSeries):
        raise OutputError(
            "DICOM output: the input is no DICOM series; expected one, since a DICOM object belongs to a study and "
            "refers to its images. Give the DICOM files, or save .nii.gz, .nrrd or .mha"
        )
    _check_installed()
    headers = series.headers
    placed = [(k, one) for k, one in zip(series.index, series.slices, strict=True) if k >= 0]
    _, first = placed[0]
    away = abs(float(np.linalg.det(geometry.affine[:3, :3]))) / math.prod(first.spacing)
    with quiet():
        ids = [_uid([header], "SOPInstanceUID") for header in headers]
        slices = {k: _reference(headers[one.file], ids[one.file], one) for k, one in placed}
        owner = next((one for one in headers if text(one, "PatientID") not in ("", "?")), headers[0])
        uids = [
            _uid(headers, f"{name}UID") for name in ("StudyInstance", "SeriesInstance", "FrameOfReference")
        ]
    return Source(
        owner,
        tuple(slices[k] for k in range(geometry.grid_shape[2])),
        first.size,
        tuple(first.orientation.tolist()),
        (away, *first.spacing),
        first.thickness or away,
        *uids,
    )


def _reference(header: Any, uid: str, one: Slice) -> Reference:
    x, y, z = one.position.tolist()
    frame = one.frame + 1 if header.get("PerFrameFunctionalGroupsSequence") else None
    kind = text(header, "SOPClassUID")
    return Reference(kind if _CLASS.fullmatch(kind) else CT_IMAGE, uid, frame, (x, y, z))


class _Filters:
    """The filters of warnings, which are the whole process's, and who wants them to ignore all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: set[object] = set()
        self._kept: warnings.catch_warnings[None] | None = None

    def ignore(self, who: object) -> None:
        with self._lock:
            self._inside.add(who)
            if self._kept is None:
                kept = warnings.catch_warnings()
                kept.__enter__()
                self._kept = kept
                warnings.simplefilter("ignore")

    def restore(self, who: object) -> None:
        """Put the filters back if nobody else is inside; to do so twice does nothing."""
        with self._lock:
            self._inside.discard(who)
            if not self._inside and self._kept is not None:
                self._kept.__exit__(None, None, None)
                self._kept = None

    def forked(self) -> None:
        """In a process that was forked there are no other threads, and none that would give the lock back."""
        self._lock = threading.Lock()
        for who in [*self._inside]:
            self.restore(who)


_filters = _Filters()
os.register_at_fork(after_in_child=_filters.forked)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of pydicom and highdicom back: they quote values, which may be the patient's.

    Threads that are inside at the same time share this, and their filters come back when the last of them has left.
    """
    me = object()
    try:
        _filters.ignore(me)
        yield
    finally:
        _filters.restore(me)


def _check_installed() -> None:
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise OutputError(f"DICOM output needs highdicom ({error}); pip install 'trtseg[dicom]'") from error


def _is_of_patient(tag: Any) -> bool:
    from pydicom.datadict import dictionary_has_tag, dictionary_is_retired

    return tag.group in _PATIENT_GROUPS and dictionary_has_tag(tag) and not dictionary_is_retired(tag)


def _as_it_stands(header: Any, key: Any) -> Any:
    """An element to be copied: pydicom loses letters where it encodes some texts anew, as of ISO_IR 13."""
    from pydicom import DataElement
    from pydicom.datadict import dictionary_VR
    from pydicom.tag import Tag

    element = header.get_item(tag := Tag(key))
    vr = dictionary_VR(tag)
    if element.is_raw and vr in _TEXTS and element.VR in (vr, None):
        return DataElement(tag, vr, element.value, already_converted=True)
    found = header[tag]
    if vr == found.VR:
        return found
    if not isinstance(found.value, str):
        raise ValueError(f"{tag} is {found.VR}, not {vr}")
    return DataElement(tag, vr, found.value)


def _uid(headers: Sequence[Any], keyword: str) -> str:
    """The first UID that headers have. Where copies lost or spoilt it, nothing can be referred to, and any will do."""
    found = (text(header, keyword) for header in headers)
    return next(filter(_ID.fullmatch, found), None) or new_uid()
