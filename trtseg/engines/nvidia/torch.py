"""The GPU engine on PyTorch: the net of the ONNX file, channels last, in the cascade's own buffers and streams.

It runs on every GPU that PyTorch knows, also where TensorRT cannot be installed. PyTorch and onnx are imported only
when this engine is opened.

The acceptance gate demands that a slice has the same logits in every slot of a batch, bit for bit. Some of cuDNN's
kernels compute the last rows of a batch in another order of sums than the rest. So each operator is tried once, when
the net is loaded, on a batch of equal slices: one that gives unequal rows is run on parts of the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from trtseg.cuda.arrays import CudaArray
from trtseg.errors import ArgumentError, DeviceError, ModelError
from trtseg.spec import ModelSpec

log = logging.getLogger("trtseg")

_NUMPY: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}

# An operator with its weights: activations in, activations out.
_Operator = Callable[..., Any]


def import_torch() -> Any:
    """PyTorch; a DeviceError says what to install."""
    try:
        import torch
    except ImportError as error:
        raise DeviceError(
            f"runtime: got 'torch', but PyTorch does not load ({error}); install it with pip install \"trtseg[torch]\""
        ) from error
    return torch


class TorchNet:
    """A net of an ONNX file as PyTorch functions, with its weights on a device: ``[batch, 1, H, W]`` to logits.

    Parameters
    ----------
    onnx_file : bytes
        The net, of the operators Conv, ConvTranspose, Relu, MaxPool and Concat.
    spec : ModelSpec
        What the net expects and means.
    precision : str
        ``fp16`` or ``fp32``, as the weights are.
    batch : int
        Slices in each call.
    device : str
        ``cpu``, or ``cuda:0``.

    Raises
    ------
    ModelError
        The file has an operator that is not among these.
    DeviceError
        PyTorch or onnx is not installed, or PyTorch fails.
    """

    def __init__(self, onnx_file: bytes, spec: ModelSpec, precision: str, batch: int, device: str) -> None:
        torch = self._torch = import_torch()
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError as error:
            raise DeviceError(
                f"runtime: got 'torch', but onnx does not load ({error}); install it with pip install \"trtseg[torch]\""
            ) from error
        self.spec, self.precision, self.batch, self.device = spec, precision, batch, device
        graph = onnx.load_from_string(onnx_file).graph
        self._input, self._output = graph.input[0].name, graph.output[0].name
        weights = {}
        for tensor in graph.initializer:
            weight = torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(device)
            weights[tensor.name] = (
                weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight
            )
        readers = [name for node in graph.node for name in node.input]
        # Of each step: the name of its result, those of its inputs, and ways to compute it, the fastest first.
        steps: list[tuple[str, tuple[str, ...], list[_Operator]]] = []
        nodes = list(graph.node)
        while nodes:
            node = nodes.pop(0)
            arguments = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            own = [weights[name] for name in node.input if name in weights]
            ways, result = [_operator(torch, node.op_type, arguments, own, spec)], node.output[0]
            following = nodes[0] if nodes else None
            alone = readers.count(result) == 1
            if alone and following is not None and (node.op_type, following.op_type) == ("Conv", "Relu"):
                result = nodes.pop(0).output[0]
                ways = _with_relu(torch, ways[0], arguments, own, device)
            steps.append((result, tuple(name for name in node.input if name not in weights), ways))
        self._last_use = {name: i for i, (_, inputs, _) in enumerate(steps) for name in inputs}
        #: How many parts of the batch each operator takes one after the other, where that is not one.
        self.parts: dict[str, int] = {}
        self._steps = self._choose(steps)

    def __call__(self, x: Any) -> Any:
        """Enqueue the net on the current stream; ``x`` ``[batch, 1, H, W]`` is channels last."""
        values = {self._input: x}
        for i, (result, inputs, operator) in enumerate(self._steps):
            values[result] = operator(*(values[name] for name in inputs))
            for name in inputs:
                if self._last_use[name] == i:
                    values.pop(name, None)
        return values[self._output]

    def close(self) -> None:
        """Let the weights go."""
        self._steps = []

    def settings(self) -> Any:
        """Context in which a call computes: no gradients, no TF32, kernels that are chosen by rules."""
        # Kernels that are chosen by a measurement would be others in another thread or process.
        return _Contexts(
            self._torch.inference_mode(),
            self._torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        )

    def _choose(
        self, steps: list[tuple[str, tuple[str, ...], list[_Operator]]]
    ) -> list[tuple[str, tuple[str, ...], _Operator]]:
        """Take of each step the first way that gives equal rows for equal slices, with whatever lies in memory."""
        torch, chosen = self._torch, []
        generator = torch.Generator().manual_seed(0)
        slice_ = torch.rand((1, *self.spec.size, 1), generator=generator)
        same = slice_.expand(self.batch, *self.spec.size, 1).contiguous().permute(0, 3, 1, 2)
        values = {self._input: same.to(self.device, getattr(torch, _NUMPY[self.precision].name))}
        with self.settings():
            for i, (result, inputs, ways) in enumerate(steps):
                given = [values[name] for name in inputs]
                counts = [2**k for k in range(1, self.batch.bit_length()) if self.batch % 2**k == 0]
                tries = [(1, way) for way in ways]
                tries += [(n, _in_parts(torch, ways[-1], n)) for n in dict.fromkeys([*counts, self.batch])]
                parts, operator, value = self._first_sound(tries, given)
                if parts > 1:
                    self.parts[result] = parts
                    log.info("%s net: %s is computed in %d parts of a batch", self.spec.role, result, parts)
                chosen.append((result, inputs, operator))
                values[result] = value
                for name in inputs:
                    if self._last_use[name] == i:
                        values.pop(name, None)
        return chosen

    def _first_sound(
        self, tries: list[tuple[int, _Operator]], given: list[Any]
    ) -> tuple[int, _Operator, Any]:
        """The first of the ways whose rows are equal, with its number of parts and its result."""
        for parts, operator in tries:
            # NaN is left where the next result goes: a kernel must not read its output.
            operator(*given).fill_(float("nan"))
            value = operator(*given)
            if bool((value == value[:1]).all()):  # NaN is not equal
                return parts, operator, value
        raise DeviceError(
            f"runtime: got 'torch', but the {self.spec.role} net gives other logits for equal slices on "
            f"{self.device}; use another runtime, or device='cpu'"
        )


class _Contexts:
    """Some context managers as one."""

    def __init__(self, *contexts: Any) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)


def _operator(
    torch: Any, op: str, arguments: dict[str, Any], weights: list[Any], spec: ModelSpec
) -> _Operator:
    """One operator with its weights."""
    functional = torch.nn.functional
    strides, pads = arguments.get("strides", [1, 1]), arguments.get("pads", [0, 0, 0, 0])
    plain = (
        pads[:2] == pads[2:]
        and arguments.get("group", 1) == 1
        and set(arguments.get("dilations", [1])) == {1}
    )
    if op == "Conv" and plain:
        return lambda x: functional.conv2d(x, *weights, stride=strides, padding=pads[:2])
    if op == "ConvTranspose" and plain and not any(arguments.get("output_padding", [0])):
        return lambda x: functional.conv_transpose2d(x, *weights, stride=strides, padding=pads[:2])
    if op == "MaxPool" and plain:
        return lambda x: functional.max_pool2d(x, arguments["kernel_shape"], strides, pads[:2])
    if op == "Relu":
        return lambda x: functional.relu(x)
    if op == "Concat" and arguments.get("axis") == 1:
        return lambda *parts: torch.cat(parts, dim=1)
    raise ModelError(
        f"{spec.role} net: has the operator {op} {arguments}, which the runtime 'torch' does not run; use another "
        "runtime, or device='cpu'"
    )


def _with_relu(
    torch: Any, convolution: _Operator, arguments: dict[str, Any], weights: list[Any], device: str
) -> list[_Operator]:
    """Ways to compute a convolution with bias and ReLU: in one kernel, on a GPU, and one after the other."""
    strides, pads = arguments.get("strides", [1, 1]), arguments.get("pads", [0, 0, 0, 0])
    ways: list[_Operator] = [lambda x: torch.relu_(convolution(x))]
    if device.startswith("cuda"):
        ways.insert(0, lambda x: torch.cudnn_convolution_relu(x, *weights, strides, pads[:2], [1, 1], 1))
    return ways


def _in_parts(torch: Any, operator: _Operator, n: int) -> _Operator:
    """The operator on ``n`` parts of the batch, one after the other."""

    def run(*given: Any) -> Any:
        parts = zip(*(x.chunk(n) for x in given), strict=True)
        return torch.cat([operator(*part) for part in parts])

    return run


class TorchEngine:
    """A net on a GPU, for one stream at a time; its activations are in a memory pool of its own."""

    def __init__(self, net: TorchNet) -> None:
        self.spec, self.precision, self.batch, self.device = net.spec, net.precision, net.batch, net.device
        self.dtype = _NUMPY[net.precision]
        self._net, self._torch = net, import_torch()
        # A graph keeps the addresses of its activations, so nobody else may get this memory while the engine lives.
        self._pool: Any = self._torch.cuda.MemPool()

    def run(self, src: CudaArray, dst: CudaArray, stream: int = 0) -> None:
        """Enqueue logits ``dst`` ``[batch, channels, H, W]`` of slices ``src`` ``[batch, 1, H, W]`` on ``stream``."""
        torch = self._torch
        for name, array, channels in (("src", src, 1), ("dst", dst, self.spec.channels)):
            expected = (self.batch, channels, *self.spec.size)
            if array.shape != expected or array.dtype != self.dtype:
                raise ArgumentError(
                    f"{name}: got {array.dtype} {array.shape}; this engine takes {self.dtype} {expected}"
                )
        with (
            torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self.device)),
            torch.cuda.use_mem_pool(self._pool, device=self.device),
            self._net.settings(),
        ):
            x, logits = torch.as_tensor(src, device=self.device), torch.as_tensor(dst, device=self.device)
            # one channel: the same memory with the strides of channels last, by which PyTorch goes
            x = x.reshape(self.batch, *self.spec.size, 1).permute(0, 3, 1, 2)
            logits.copy_(self._net(x))

    def capturable(self, stream: int) -> bool:
        """Whether `run` on ``stream`` can be recorded in a CUDA graph: after a first run nothing is allocated."""
        return True

    def close(self) -> None:
        """Let the activations go; no graph uses them any more."""
        self._pool = None
