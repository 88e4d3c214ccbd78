"""Segment a CT: `segment` for one, `Segmenter` for many."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from trtseg import __version__, models
from trtseg.cascade.arrays import checked, checked_on_host, checked_out
from trtseg.cascade.base import Cascade, Logits, Progress, Timings
from trtseg.cascade.cpu import CpuCascade
from trtseg.cascade.volumes import check_search, label_volume
from trtseg.engines import open_engine, resolve_device
from trtseg.engines.nvidia.runtime import check_batch, check_name
from trtseg.engines.precision import named
from trtseg.errors import ArgumentError
from trtseg.fit import AIR_HU, Fit
from trtseg.io import load
from trtseg.io.slices import checked_shape
from trtseg.labels.postprocess import PostProcess
from trtseg.resources import available_cpus, begin_products, check_threads, memory_for
from trtseg.result import Segmentation, conclude
from trtseg.spec import CascadeSpec
from trtseg.stream import BYTES_A_VOXEL, Labeller, OnLabels, Stream
from trtseg.threads import Ahead, Turns
from trtseg.volume import check_spacing

T = TypeVar("T")


class Segmenter:
    """A model that is loaded once and segments many CTs.

    Several threads may use a Segmenter: reading and post-processing run side by side, the nets (which use all cores, or
    a GPU) take one CT after the other. `close`, or the end of ``with``, gives its memory back; a Segmenter that nobody
    closes does so when nobody refers to it any more. It stays in its process: pickling or copying it is a TypeError.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or a folder as ``training.export`` writes it.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; a named device that does not work is an error, and never replaced.
    precision : str
        ``auto``; on the CPU ``fp32``, ``bf16`` or ``int8``, and ``auto`` is the fastest that model and processor
        have; on a GPU ``fp32`` or ``fp16``, and ``auto`` is FP16, but FP32 for a net whose FP16 engine does not
        agree with FP32.
    postprocess : PostProcess
        Which steps follow the nets.
    batch : int
        Slices in each run of an engine on a GPU: 16 for volumes, 1 for slices that come one by one. The CPU has no
        fixed batch.
    runtime : str
        What runs the nets on a GPU: ``tensorrt``, ``tensorrt-rtx``, ``torch``, or ``auto``; only the last on the CPU.
    threads : int, optional
        Threads of operations and nets on the CPU, and with a GPU of copies on the host; by default one for each
        processor that this process may use.
    search_mm : float
        Label slices this many mm apart first, 10 to 50, then those no farther from a slice with liver, and no others:
        quicker where much more than the liver was scanned. 0 labels all. Only `segment` does so; docs/performance.md.
    progress : callable, optional
        Called as ``progress(text, fraction)`` while engines are built for a GPU, at their first use.

    Raises
    ------
    ModelError, DeviceError, ArgumentError
        The model is unknown or damaged, the device is not there, an argument is wrong.

    Examples
    --------
    >>> with trtseg.Segmenter() as segmenter:              # doctest: +SKIP
    ...     for path in paths:
    ...         segmenter.segment(path).save(path.with_name("seg_" + path.name))
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        device: str = "auto",
        precision: str = "auto",
        postprocess: PostProcess | None = None,
        batch: int = 16,
        runtime: str = "auto",
        threads: int | None = None,
        search_mm: float = 0.0,
        progress: Progress | None = None,
    ) -> None:
        self.device = resolve_device(device)
        check_batch(batch)
        check_threads(threads)
        if runtime != "auto":
            check_name(runtime, self.device)
        self.search_mm = check_search(search_mm)
        begin_products()
        files = models.find(model)
        self.spec: CascadeSpec = files.spec
        if not isinstance(postprocess, (PostProcess, type(None))):
            raise ArgumentError(f"postprocess: got a {type(postprocess).__name__}; expected a PostProcess")
        self.postprocess = PostProcess() if postprocess is None else postprocess
        self._cascade: Cascade
        self._at_once = batch  # slices of a stream; see Stream
        self._threads = threads = threads or available_cpus()
        if self.device == "cpu":
            engines = (
                open_engine(files, net, precision=precision, threads=threads) for net in self.spec.nets
            )
            self._cascade = cascade = CpuCascade(*engines, threads=threads)
            self._at_once = cascade.side_by_side
        else:
            from trtseg.cascade.gpu import open_cuda_cascade  # costs nothing on the CPU

            self._cascade = open_cuda_cascade(
                files, self.device, precision, runtime, batch, threads, progress
            )
        # Also runs when the process ends, while the GPU can still be reached.
        self._close = weakref.finalize(self, self._cascade.close)
        self._lock = Turns("Segmenter")

    def close(self) -> None:
        """Give memory and engines back, after the calls that wait for the nets; closing twice does nothing.

        A call that reads its CT meanwhile finds the Segmenter closed.
        """
        self._lock.run(self._close)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Segmenter: got a call to pickle or copy one, as a pool of processes makes, but its nets belong to this "
            "process; make one in each process, as in the pool's initializer, use threads, or let trtseg.cohort.run "
            "segment many CTs in processes (trtseg.cohort.Workers)"
        )

    @property
    def precision(self) -> str:
        """Arithmetic of the nets, of each net if they differ."""
        return ", ".join(dict.fromkeys(self._cascade.precisions.values()))

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result tells of the model, the device, the engines and the versions, so that it can be made again."""
        return {
            "model": self.spec.name,
            "model_version": self.spec.version,
            "sha256": self._sha256(),
            "thresholds": {net.role: net.threshold for net in self.spec.nets},
            "device": self.device,
            "precision": self.precision,
            **self._cascade.provenance,
            **({"search_mm": self.search_mm} if self.search_mm else {}),
            "versions": {
                "trtseg": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "intended_use": self.spec.intended_use,
            "fingerprint": self.fingerprint(),
        }

    def _sha256(self) -> dict[str, str]:
        """The ONNX files from which the engines were made, and their hashes."""
        names = [named(precision).file(role) for role, precision in self._cascade.precisions.items()]
        return {name: self.spec.sha256[name] for name in names}

    def fingerprint(self, orientation: str | None = None) -> str:
        """Stand for all that decides on a CT's labels: version, nets, thresholds, device, precision, steps, search.

        On the CPU the runtime is not in it: it changes no more than the rounding of logits. ``orientation`` is that of
        `segment`.
        """
        nets = [*zip(self._sha256().values(), (net.threshold for net in self.spec.nets), strict=True)]
        more = orientation and orientation.upper(), self.search_mm and f"search {self.search_mm} mm"
        made = [__version__, nets, self.device.split(":")[0], self.precision, vars(self.postprocess)]
        return hashlib.sha256(json.dumps([*made, *filter(None, more)]).encode()).hexdigest()[:16]

    def segment(
        self,
        source: Any,
        *,
        affine: Any = None,
        spacing: Any = None,
        orientation: str | None = None,
        series: str | None = None,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment one CT.

        Parameters
        ----------
        source : path, nibabel image, SimpleITK image, numpy.ndarray or Volume
            The CT, in Hounsfield units.
        affine : array_like [4, 4], optional
            For an array in index order ``[i, j, k]``: index to RAS millimetres, as nibabel has it.
        spacing : (float, float, float), optional
            For an array in canonical order ``[Z, Y, X]`` (feet to head, front to back, the patient's right to left):
            millimetres along the axes, ``(sz, sy, sx)``.
        orientation : str, optional
            ``RAS``, ``LPS``, ...: where the axes of the source point to, instead of what its header says.
        series : str, optional
            Series Instance UID of the series to take of several DICOM series; by default the best CT.
        progress : callable, optional
            Called as ``progress(text, fraction)``, with a fraction from 0 to 1.

        Returns
        -------
        Segmentation
            Labels on the source's own grid, with measurements, timings and provenance.

        Raises
        ------
        InputError
            The source cannot be read, or is not a CT that can be segmented.
        ArgumentError
            An argument is wrong, or the Segmenter is closed.
        """
        start = time.perf_counter()
        volume = load(source, affine=affine, spacing=spacing, orientation=orientation, series=series)
        read = time.perf_counter() - start
        with memory_for(volume.name, BYTES_A_VOXEL * volume.array.size):
            (labels, logits, stages, n), provenance = self._run(
                lambda cascade: (
                    label_volume(cascade, volume, progress, self.search_mm, self.postprocess),
                    self.provenance,  # before another thread's slices change it, as on a GPU they may
                )
            )
            provenance |= {"labelled_slices": n} if self.search_mm else {}
            if orientation is not None:
                provenance |= {"orientation": orientation, "fingerprint": self.fingerprint(orientation)}
            return conclude(labels, volume, self.postprocess, {"read": read, **stages}, provenance, logits)

    def stream(
        self,
        shape: tuple[int, int],
        *,
        spacing: Sequence[float],
        directions: Sequence[float] | None = None,
        on_labels: OnLabels | None = None,
        queue: int = 64,
    ) -> Stream:
        """Segment a scan while its slices arrive, one by one and in any order.

        See `trtseg.stream.Stream` for the parameters, and for what to do with it.

        Raises
        ------
        ArgumentError, ModelError
            An argument or ``search_mm`` is wrong, the slices are not axial, or the model takes none of that size.

        Examples
        --------
        >>> with segmenter.stream((512, 512), spacing=(0.8, 0.8), on_labels=draw) as stream:   # doctest: +SKIP
        ...     for hu, position in scanner:
        ...         stream.push(hu, position)
        ...     result = stream.finish()
        """
        if self.search_mm:
            raise ArgumentError(f"search_mm: got {self.search_mm:g}; expected 0: a stream labels all slices")

        def label(hu: NDArray[np.int16], fit: Fit, logits: Logits) -> tuple[NDArray[np.uint8], Timings]:
            return self._run(lambda cascade: cascade.run(hu, (1.0, 1.0), fit=fit, logits=logits))

        labeller = Labeller(
            self.spec.nets[0],
            label,
            self._at_once,
            self._threads,
            self.postprocess,
            lambda: self.provenance,
            self._lock,
        )
        return Stream(labeller, shape, spacing, directions, on_labels, queue)

    def warm_up(self, shape: tuple[int, int], spacing: tuple[float, float]) -> None:
        """Make ready for slices of one size, so that the first of them takes no longer than the others.

        A GPU takes the memory, runs the nets for the first time and makes the CUDA graphs; they stay until slices of
        another size, spacing or placement come. The CPU only labels a slice of air.

        Parameters
        ----------
        shape : (int, int)
            Rows and columns, ``[Y, X]``.
        spacing : (float, float)
            Millimetres along the axes of a slice, ``(sy, sx)``.

        Raises
        ------
        ArgumentError, ModelError
            There are no such slices, or the model takes none of that size.
        DeviceError
            The device fails.

        Examples
        --------
        >>> segmenter = trtseg.Segmenter(device="cuda", batch=1)   # doctest: +SKIP
        >>> segmenter.warm_up((512, 512), (0.8, 0.8))              # doctest: +SKIP
        """
        rows, columns = checked_shape(shape)
        self.spec.nets[0].fit_slice((rows, columns), spacing)  # says what is wrong before memory is taken
        self.label(np.full((1, rows, columns), AIR_HU, np.int16), spacing=spacing)

    def label(
        self,
        hu: Any,
        *,
        spacing: tuple[float, float],
        fit: Fit | None = None,
        out: Any = None,
        stream: int = 0,
    ) -> Any:
        """Label slices that are in memory, by the nets alone: for a pipeline beside a scanner.

        There is no post-processing, no measurement and no provenance. With a CUDA device, ``hu`` and ``out`` may be
        arrays on that GPU of any library that has ``__cuda_array_interface__`` or DLPack (PyTorch, CuPy, PyCUDA, JAX,
        ...); they are used where they are, without a copy.

        Parameters
        ----------
        hu : int16 [Z, Y, X]
            Slices in Hounsfield units, C-contiguous: rows front to back, columns from the patient's right to left.
        spacing : (float, float)
            Millimetres along the axes of a slice, ``(sy, sx)``.
        fit : Fit, optional
            How the slices lie on the nets' grid, as `place` gives it. Without it these slices alone decide. Whoever
            labels a scan slice by slice gives the same placement with each slice.
        out : uint8 [Z, Y, X], optional
            Where the labels go, C-contiguous, not in the memory of ``hu``; by default a new array on the host.
        stream : int
            CUDA stream on which arrays on the GPU are made and will be used, as
            ``torch.cuda.current_stream().cuda_stream``. Work enqueued there afterwards finds the labels in ``out``.

        Returns
        -------
        uint8 [Z, Y, X]
            ``out``, or the new array: 0 background, 1 liver, 2 tumour.

        Raises
        ------
        ArgumentError
            An argument is wrong, an array has the wrong type or layout, or is not where the device can use it; or the
            Segmenter is closed.
        ModelError
            The model takes no slices of that size.
        DeviceError
            The device fails.
        """
        size = self.spec.nets[0].size
        if fit is not None:  # else the placement checks the spacing
            check_spacing(spacing, "yx")
            if not isinstance(fit, Fit) or fit.net != size:
                raise ArgumentError(
                    f"fit: got {fit!r}; expected a Fit on a grid of {size[0]}x{size[1]} pixels, as place() of this "
                    "Segmenter gives it"
                )

        def run(cascade: Cascade) -> Any:
            slices = checked(hu, "hu", np.int16, cascade)
            labels = None if out is None else checked_out(out, slices, cascade)
            return cascade.run(slices, spacing, labels, fit=fit, stream=stream)[0]

        made = self._run(run)
        return made if out is None else out

    def place(self, hu: Any, *, spacing: tuple[float, float], stream: int = 0) -> Fit:
        """Find out how slices lie on the grid of the nets, for `label`: where the patient is, not the picture.

        Parameters
        ----------
        hu : int16 [Z, Y, X]
            Slices in Hounsfield units, on the host or on the GPU: the whole scan, or the first slices of it.
        spacing, stream
            As for `label`.

        Returns
        -------
        Fit
            For `label`, with all slices of the scan.

        Raises
        ------
        ArgumentError, ModelError, DeviceError
            As `label`.
        """
        return self._run(
            lambda cascade: cascade.place(checked(hu, "hu", np.int16, cascade), spacing, stream=stream)
        )

    def stages(self, hu: Any, *, spacing: tuple[float, float]) -> dict[str, float]:
        """Seconds that each stage of the cascade takes for a chunk of slices, in order.

        ``hu``, int16 ``[n, Y, X]``, are on the host, and ``spacing`` is that of `place`. On a GPU ``n`` is at most the
        batch, nothing overlaps, the tumour net runs in any case, and each time is a median of repeated runs.
        """
        return self._run(
            lambda cascade: cascade.stages(checked_on_host(hu, "hu", np.int16, cascade), spacing)
        )

    def _run(self, function: Callable[[Cascade], T]) -> T:
        """Call a function with the cascade, in one thread at a time, unless the Segmenter is closed."""

        def opened() -> T:
            if not self._close.alive:
                raise ArgumentError("Segmenter: got a call after close(); make another Segmenter")
            return function(self._cascade)

        return self._lock.run(opened)


def segment(
    source: Any,
    *,
    affine: Any = None,
    spacing: Any = None,
    orientation: str | None = None,
    series: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Segmentation:
    """Segment one CT, which is read while the model is loaded; `Segmenter` loads the model once for many.

    Parameters
    ----------
    source, affine, spacing, orientation, series
        As for `Segmenter.segment`.
    progress : callable, optional
        Called as ``progress(text, fraction)``, while engines are built and while the CT is segmented.
    **options
        ``model``, ``device`` and all other parameters of `Segmenter`.

    Returns
    -------
    Segmentation
        Labels on the source's own grid, with measurements, timings and provenance.

    Raises
    ------
    ArgumentError, InputError
        As `Segmenter.segment`.
    ModelError, DeviceError
        As `Segmenter`.

    Examples
    --------
    >>> result = trtseg.segment("ct.nii.gz")               # doctest: +SKIP
    >>> result.liver_ml, result.tumour_ml, result.save("seg.nii.gz")  # doctest: +SKIP
    """
    begin_products()  # before the thread that reads, and before the nets take memory
    reading = Ahead(
        partial(load, source, affine=affine, spacing=spacing, orientation=orientation, series=series)
    )
    with Segmenter(**options, progress=progress) as segmenter:
        result = segmenter.segment(reading.result(), orientation=orientation, progress=progress)
    return dataclasses.replace(result, timings={**result.timings, "read": reading.seconds})
