"""From a net to the bytes of its engine: one path for TensorRT and TensorRT-RTX, whose module is passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trtseg.engines.base import Net
from trtseg.engines.nvidia.runtime import Runtime, failure, logger, one_at_a_time
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.errors import DeviceError, ModelError


@dataclass(frozen=True)
class Serialized:
    """The bytes of an engine and facts about its build: see `trtseg.engines.nvidia.sidecar.Sidecar`."""

    data: bytes
    tensors: list[dict[str, Any]]
    settings: dict[str, Any]
    warnings: list[str]
    timing_cache: bytes | None


def serialize(
    runtime: Runtime,
    net: Net,
    key: EngineKey,
    *,
    progress: Callable[[float], None] | None = None,
    timing_cache: bytes | None = None,
) -> Serialized:
    """Build the engine ``key`` of a net.

    The types are those of the ONNX file (strong typing), the shape is fixed, TF32 is off, and all work of a run is in
    one stream.

    Parameters
    ----------
    runtime : Runtime
        The runtime that builds. Where ``key.gpu`` is not empty it builds on, and for, the GPU of the current CUDA
        context.
    net : Net
        The net in the precision of the key, ``[n, 1, H, W]`` to ``[n, channels, H, W]`` with any ``n``.
    key : EngineKey
        Key of the engine.
    progress : callable, optional
        Called now and then with the fraction that is done. An exception in it ends the build.
    timing_cache : bytes, optional
        Measurements of TensorRT from earlier builds on this GPU; TensorRT-RTX makes none.

    Raises
    ------
    ModelError
        The runtime cannot read the net, or its tensors are not those that the key needs.
    DeviceError
        The runtime cannot build it; `OutOfMemoryError` where the GPU has too little memory for that.
    """
    with one_at_a_time:
        return _serialize(runtime, net, key, progress, timing_cache)


def _serialize(
    runtime: Runtime,
    net: Net,
    key: EngineKey,
    progress: Callable[[float], None] | None,
    timing_cache: bytes | None,
) -> Serialized:
    trt = runtime.module
    log = logger(trt)
    log.take()
    try:
        builder = trt.Builder(log)
    except Exception as error:  # pybind11 raises a TypeError, whatever the cause
        raise _failed(runtime, key, log, error) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    spec, parser = net.spec, trt.OnnxParser(network, log)
    if not parser.parse(net.onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "; ".join(f"{error.node_operator()}: {error.desc()}".lstrip(": ") for error in errors)
        raise ModelError(
            f"{spec.role} net: {runtime.title} cannot read it ({' '.join(said.split())}); export the model again"
        )
    tensors = _fix_shape(trt, network, net, key)
    config = builder.create_builder_config()
    settings = _configure(runtime, config, key)
    if runtime.needs_gpu:
        # A timing cache of another version or GPU is refused, and replaced by an empty one.
        known = config.create_timing_cache(timing_cache or b"")
        if known is None or not config.set_timing_cache(known, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    data = builder.build_serialized_network(network, config)
    if monitor.stopped_by is not None:
        raise monitor.stopped_by
    if data is None:
        raise _failed(runtime, key, log, None)
    return Serialized(
        data=bytes(data),
        tensors=tensors,
        settings=settings,
        warnings=log.take()[0],
        timing_cache=bytes(config.get_timing_cache().serialize()) if runtime.needs_gpu else None,
    )


def _failed(runtime: Runtime, key: EngineKey, log: Any, error: Exception | None) -> DeviceError:
    said = "; ".join(log.take()[1]) or str(error or "")
    return failure(f"{runtime.title} could not build the engine {key}", said)


def _fix_shape(trt: Any, network: Any, net: Net, key: EngineKey) -> list[dict[str, Any]]:
    """Fix the batch size, check the tensors against the net's spec and precision, and return them for the sidecar."""
    spec = net.spec
    if (network.num_inputs, network.num_outputs) != (1, 1):
        raise ModelError(
            f"{spec.role} net: has {network.num_inputs} inputs and {network.num_outputs} outputs; expected one each"
        )
    source, logits = network.get_input(0), network.get_output(0)
    if tuple(source.shape)[1:] == (1, *spec.size) and source.shape[0] in (-1, key.batch):
        source.shape = (key.batch, 1, *spec.size)
    dtype = getattr(trt, net.precision.dtype.name)
    tensors = []
    for tensor, mode, channels in ((source, "input", 1), (logits, "output", spec.channels)):
        expected = (key.batch, channels, *spec.size)
        if tuple(tensor.shape) != expected or tensor.dtype != dtype:
            raise ModelError(
                f"{spec.role} net: its {mode} is {tensor.dtype.name} {tuple(tensor.shape)}, but an engine {key} needs "
                f"{dtype.name} {expected}; export the model again"
            )
        tensors.append({"name": tensor.name, "mode": mode, "dtype": key.precision, "shape": list(expected)})
    return tensors


def _configure(runtime: Runtime, config: Any, key: EngineKey) -> dict[str, Any]:
    """Set the builder, and return the settings for the sidecar."""
    trt = runtime.module
    # TF32 is on by default and would multiply FP32 with 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    # With DISTRIBUTIVE_INDEPENDENCE all slots of a batch are computed alike: the acceptance gate compares their bits.
    # With REQUIRE_USER_ALLOCATION a run of TensorRT-RTX allocates nothing, since a CUDA graph cannot hold an
    # allocation; `LoadedEngine` gives each context its memory.
    wanted = ["DISTRIBUTIVE_INDEPENDENCE", *([] if runtime.needs_gpu else ["REQUIRE_USER_ALLOCATION"])]
    # The oldest versions lack some of these flags.
    flags = {flag.lower(): flag in trt.BuilderFlag.__members__ for flag in wanted}
    for flag in wanted:
        if flags[flag.lower()]:
            config.set_flag(trt.BuilderFlag.__members__[flag])
    settings: dict[str, Any] = {
        "strongly_typed": True,
        "tf32": False,
        **flags,
        "optimization_level": config.builder_optimization_level,
    }
    if hasattr(config, "max_aux_streams"):
        config.max_aux_streams = 0
        settings["max_aux_streams"] = 0
    if runtime.needs_gpu:
        return settings
    capability = "CURRENT" if key.gpu else key.target.upper().replace("_", "")
    if key.target == "portable":
        settings["compute_capability"] = "default"
        return settings
    config.num_compute_capabilities = 1
    # TensorRT-RTX returns False for a capability that it does not know.
    if not config.set_compute_capability(trt.ComputeCapability.__members__[capability], 0):
        raise DeviceError(f"{runtime.title} does not take the compute capability {capability}")
    settings["compute_capability"] = capability
    return settings


def _monitor(trt: Any, progress: Callable[[float], None] | None) -> Any:
    """Make the object to which the builder reports its progress."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases are nested: a step of a phase counts for a part of its parent's current step."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
            self._told = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._phases[phase] = (parent, max(steps, 1), 0)

        def step_complete(self, phase: str, step: int) -> bool:
            # The runtime would print an exception that leaves this function, and go on.
            try:
                self._tell(phase, step)
            except BaseException as error:
                self.stopped_by = error
            return self.stopped_by is None

        def phase_finish(self, phase: str) -> None:
            self._phases.pop(phase, None)

        def _tell(self, phase: str, step: int) -> None:
            parent, steps, _ = self._phases.get(phase, (None, step + 1, 0))
            self._phases[phase] = (parent, steps, step + 1)
            inner = 0.0
            here: str | None = phase
            while here is not None and here in self._phases:
                here, steps, done = self._phases[here]
                inner = min((done + inner) / steps, 1.0)
            if progress is not None and inner > self._told:
                self._told = inner
                progress(inner)

    return Monitor()
