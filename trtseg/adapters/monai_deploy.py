"""A MONAI Deploy operator: an image in memory in, its labels out."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.deploy.core import Fragment, Image, Operator, OperatorSpec

from trtseg import Segmenter
from trtseg.volume import LPS_TO_RAS


class LiverOperator(Operator):  # type: ignore[misc]  # the SDK has no types
    """Segments liver and liver tumours.

    Input ``image``: an `Image` in Hounsfield units, as ``DICOMSeriesToVolumeOperator`` makes it. Outputs ``seg_image``,
    an `Image` on the same grid (0 background, 1 liver, 2 tumour), for ``DICOMSegmentationWriterOperator``, and
    ``result``, the `trtseg.Segmentation`.

    Parameters
    ----------
    fragment : Fragment
        The application.
    segmenter : Segmenter
        With the model that is loaded; other operators may use it, too.
    """

    def __init__(self, fragment: Fragment, *args: Any, segmenter: Segmenter, **kwargs: Any) -> None:
        self._segmenter = segmenter
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.input("image")
        spec.output("seg_image")
        spec.output("result")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Segment an image."""
        image = op_input.receive("image")
        metadata = image.metadata()
        affine = np.asarray(metadata["affine"], float)  # of index (column, row, slice)
        if metadata.get("space") == "LPS":
            affine = LPS_TO_RAS @ affine
        result = self._segmenter.segment(np.asarray(image.asnumpy()).transpose(2, 1, 0), affine=affine)
        op_output.emit(Image(np.ascontiguousarray(result.labels.transpose(2, 1, 0)), metadata), "seg_image")
        op_output.emit(result, "result")
