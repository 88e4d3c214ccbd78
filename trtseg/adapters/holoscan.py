"""A Holoscan operator: slices of a scan in, their labels out while the scan goes on, and the result at its end."""

from __future__ import annotations

import queue
from typing import Any

from holoscan.core import Fragment, Operator, OperatorSpec

from trtseg import Segmenter
from trtseg.stream import Stream


class LiverOperator(Operator):  # type: ignore[misc]  # the SDK has no types
    """Segments scans slice by slice.

    Input ``slice``: ``(hu, position)`` as for `trtseg.stream.Stream.push`, and None when a scan has ended. Outputs
    ``labels``, a list of ``(position, labels)`` with the provisional labels that have been made since the last slice,
    and ``result``, the `trtseg.Segmentation`, after the end of a scan.

    Parameters
    ----------
    fragment : Fragment
        The application.
    segmenter : Segmenter
        With the model that is loaded; on a GPU with ``batch=1``.
    shape, spacing, directions
        Of the slices, as for `trtseg.stream.Stream`.
    """

    def __init__(
        self,
        fragment: Fragment,
        *args: Any,
        segmenter: Segmenter,
        shape: tuple[int, int],
        spacing: tuple[float, float],
        directions: Any = None,
        **kwargs: Any,
    ) -> None:
        self._ready: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

        def opened() -> Stream:
            return segmenter.stream(
                shape, spacing=spacing, directions=directions, on_labels=lambda *made: self._ready.put(made)
            )

        self._opened = opened
        self._stream: Stream | None = None
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the ports."""
        spec.input("slice")
        spec.output("labels")
        spec.output("result")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Take a slice, or end the scan."""
        message = op_input.receive("slice")
        self._stream = self._stream or self._opened()
        result = None
        if message is None:
            try:
                with self._stream as stream:
                    result = stream.finish()
            finally:
                self._stream = None
        else:
            self._stream.push(*message)
        if labels := [self._ready.get() for _ in range(self._ready.qsize())]:
            op_output.emit(labels, "labels")
        if result is not None:
            op_output.emit(result, "result")

    def stop(self) -> None:
        """Give a scan back that has not ended."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
