"""What the volume of a result may be wrong by: warnings that go with a CT and its result."""

from __future__ import annotations

from typing import NamedTuple

#: Every code that a warning may have, and its meaning. Codes are stable; sentences are not.
CODES = {
    "geometry-unknown": "The header has no orientation or no spacing, or a stand-in such as the identity matrix.",
    "geometry-conflict": "The parts of a header (sform, qform, pixdim) contradict each other.",
    "geometry-uneven": "Slices do not lie at even distances.",
    "geometry-tilt": "The gantry was tilted: the grid is sheared.",
    "series-choice": "Another DICOM series, perhaps another phase of contrast, is as good a choice by its headers.",
    "orientation": "The patient lies otherwise than the header says.",
    "values-scale": "Air and tissue do not lie where Hounsfield units have them.",
    "values-clipped": "The values went through a display window.",
    "values-padding": "A large part of the picture was replaced by one value that looks like tissue.",
    "slices-blank": "Slices hold nothing.",
    "slices-doubled": "Neighbouring slices are equal.",
    "slices-jump": "Neighbouring slices differ as if slices were missing or out of order.",
    "slices-unplaced": "DICOM slices that may belong to the CT have no place in it.",
    "slices-refused": "A node refused instances that came with the CT; some of its slices may be missing.",
    "slices-missing": "Fewer instances of the CT are here, or came to a node, than headers say; or a node lost some.",
    "liver-cut": "The liver reaches the end of the scan or of its picture: its volume is a lower bound.",
    "liver-parts": "Much of what the net called liver was dropped, because it is not connected to the rest.",
    "liver-none": "There is nothing that can be called a liver.",
    "liver-segment": "Labels have tumours but no liver, or a DICOM Segmentation lacks a segment that was asked for.",
    "tumour-segment": "A DICOM Segmentation of another program has no segment of a tumour: perhaps nobody looked.",
    "liver-size": "No liver of an adult has this volume.",
}


class ResultWarning(NamedTuple):
    """A reason to look at a result before anybody believes its volumes.

    Attributes
    ----------
    code : str
        One of `CODES`, for programs: ``liver-cut``.
    text : str
        A sentence for people: what was seen, what it does to the result, and what to do.
    """

    code: str
    text: str
