"""The GPU engine on PyTorch: the net of the ONNX file, channels last, in the cascade's own buffers and streams.

It runs on every GPU that PyTorch knows, also where TensorRT cannot be installed. PyTorch and onnx are imported only
when this engine is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trtseg.cuda import CudaArray
from trtseg.errors import ArgumentError, DeviceError, ModelError
from trtseg.spec import ModelSpec

# Whether cuDNN measures its kernels at the first run, or chooses them by rules, which gives the same bits in every
# process.
MEASURE_KERNELS = False
FUSE = True


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
    """A net of an ONNX file as PyTorch functions, with its weights on a device: ``[n, 1, H, W]`` to logits.

    Parameters
    ----------
    onnx_file : bytes
        The net, of the operators Conv, ConvTranspose, Relu, MaxPool and Concat.
    spec : ModelSpec
        What the net expects and means.
    device : str
        ``cpu``, or ``cuda:0``.

    Raises
    ------
    ModelError
        The file is no ONNX, or has an operator that is not among these.
    DeviceError
        PyTorch or onnx is not installed.
    """

    def __init__(self, onnx_file: bytes, spec: ModelSpec, device: str, *, fuse: bool | None = None) -> None:
        torch = import_torch()
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError as error:
            raise DeviceError(
                f"runtime: got 'torch', but onnx does not load ({error}); install it with pip install \"trtseg[torch]\""
            ) from error
        graph = onnx.load_from_string(onnx_file).graph
        self._input, self._output = graph.input[0].name, graph.output[0].name
        weights = {}
        for tensor in graph.initializer:
            weight = torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(device)
            weights[tensor.name] = (
                weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight
            )
        nodes = list(graph.node)
        fuse = FUSE and device.startswith("cuda") if fuse is None else fuse
        readers = [name for node in nodes for name in node.input]
        self._steps: list[tuple[str, tuple[str, ...], Callable[..., Any]]] = []
        skipped = None
        for node, following in zip(nodes, [*nodes[1:], None], strict=True):
            if node is skipped:
                continue
            arguments = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            alone = readers.count(node.output[0]) == 1 and following is not None
            target = node
            if fuse and (node.op_type, following and following.op_type) == ("Conv", "Relu") and alone:
                target = skipped = following
            step = _step(
                torch,
                node.op_type,
                arguments,
                [weights[n] for n in node.input if n in weights],
                spec,
                relu=target is not node,
            )
            self._steps.append((target.output[0], tuple(n for n in node.input if n not in weights), step))
        self._last_use = {name: i for i, (_, inputs, _) in enumerate(self._steps) for name in inputs}

    def __call__(self, x: Any) -> Any:
        """Enqueue the net on the current stream."""
        values = {self._input: x}
        for i, (output, inputs, step) in enumerate(self._steps):
            values[output] = step(*(values[name] for name in inputs))
            for name in inputs:
                if self._last_use[name] == i:
                    values.pop(name, None)
        return values[self._output]


def _step(
    torch: Any, op: str, arguments: dict[str, Any], weights: list[Any], spec: ModelSpec, *, relu: bool
) -> Callable[..., Any]:
    """One operator, with its weights."""
    functional = torch.nn.functional
    strides, pads = arguments.get("strides", [1, 1]), arguments.get("pads", [0, 0, 0, 0])
    even = (
        pads[:2] == pads[2:]
        and arguments.get("group", 1) == 1
        and set(arguments.get("dilations", [1])) == {1}
    )
    if op == "Conv" and even and relu:
        return lambda x: torch.cudnn_convolution_relu(x, *weights, strides, pads[:2], [1, 1], 1)
    if op == "Conv" and even:
        return lambda x: functional.conv2d(x, *weights, stride=strides, padding=pads[:2])
    if op == "ConvTranspose" and even and not any(arguments.get("output_padding", [0])):
        return lambda x: functional.conv_transpose2d(x, *weights, stride=strides, padding=pads[:2])
    if op == "MaxPool" and even:
        return lambda x: functional.max_pool2d(x, arguments["kernel_shape"], strides, pads[:2])
    if op == "Relu":
        return lambda x: functional.relu(x)
    if op == "Concat" and arguments.get("axis") == 1:
        return lambda *parts: torch.cat(parts, dim=1)
    raise ModelError(
        f"{spec.role} net: has the operator {op} {arguments}, which the runtime 'torch' does not run; use another "
        "runtime, or device='cpu'"
    )


class TorchEngine:
    """A net on a GPU, for one stream at a time; its activations are in a memory pool of its own.

    Parameters
    ----------
    net : TorchNet
        The net, which several engines may share.
    spec, precision : ModelSpec, str
        What the net expects and means; ``fp16`` or ``fp32``, as its weights are.
    batch : int
        Slices in each run.
    device : str
        ``cuda:0``; ``cpu`` in tests.
    """

    def __init__(self, net: TorchNet, spec: ModelSpec, precision: str, batch: int, device: str) -> None:
        self.spec, self.precision, self.batch, self.device = spec, precision, batch, device
        self.dtype = np.dtype({"fp16": np.float16, "fp32": np.float32}[precision])
        self._net, self._torch = net, import_torch()
        # A graph keeps the addresses of its activations, so nobody else may get this memory while the engine lives.
        self._pool = self._torch.cuda.MemPool() if device.startswith("cuda") else None

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
            torch.inference_mode(),
            torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self.device)),
            torch.cuda.use_mem_pool(self._pool, device=self.device),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=MEASURE_KERNELS, deterministic=True, allow_tf32=False
            ),
        ):
            x, logits = torch.as_tensor(src, device=self.device), torch.as_tensor(dst, device=self.device)
            # one channel: the same memory with the strides of channels last, by which PyTorch goes
            x = x.reshape(self.batch, *self.spec.size, 1).permute(0, 3, 1, 2)
            logits.copy_(self._net(x))

    def capturable(self, stream: int) -> bool:
        """Whether `run` on ``stream`` can be recorded in a CUDA graph: after a first run nothing is allocated."""
        return True
