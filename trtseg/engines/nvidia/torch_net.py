"""A net of an ONNX file as PyTorch functions, channels last. PyTorch and onnx are imported only when one is made.

The acceptance gate demands that a slice has the same logits in every slot of a batch, bit for bit. Some of cuDNN's
kernels compute the last rows of a batch in another order of sums than the rest. So `TorchNet` tries each operator once
on a batch of equal slices. An operator that gives unequal rows is run on parts of the batch, one after the other.

PyTorch's compiler (`trtseg.engines.nvidia.compiled`) takes the operators as they were chosen.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from trtseg.engines.base import Net
from trtseg.engines.nvidia import compiled
from trtseg.engines.nvidia.runtime import load_runtime, tells_of_memory
from trtseg.errors import DeviceError, ModelError, OutOfMemoryError
from trtseg.spec import ModelSpec

log = logging.getLogger("trtseg")

# Held while PyTorch's settings, which are the whole process's, are those of a net; taken before `one_at_a_time`.
_settings = threading.RLock()

# An operator with its weights: activations in, activations out.
_Operator = Callable[..., Any]

# One step of a net: the name of its result, the names of its inputs, and the operator.
_Step = tuple[str, tuple[str, ...], _Operator]


def _without_tf32(backends: Any) -> tuple[Any, str, Any]:
    """The switch that keeps cuDNN from TF32: its owner, its name and what to set it to.

    That is the newer one only where the user has set such ones, after which the older one is refused or has no effect:
    whoever reads the older one meanwhile would get an error.
    """
    cudnn = backends.cudnn
    is_set = getattr(backends, "fp32_precision", "none") != "none"
    try:
        is_set = is_set or cudnn.allow_tf32 is None
    except RuntimeError:
        is_set = True
    return (cudnn.conv, "fp32_precision", "ieee") if is_set else (cudnn, "allow_tf32", False)


class TorchNet:
    """A net of an ONNX file as PyTorch functions, with its weights on a device: ``[batch, 1, H, W]`` to logits.

    Parameters
    ----------
    net : Net
        The net, of the operators Conv, ConvTranspose, Relu, MaxPool and Concat.
    batch : int
        Slices in each call.
    device : str
        ``cpu``, or ``cuda:0``.
    engine : bytes, optional
        What `compile` gave for the same arguments. It can run any code.

    Attributes
    ----------
    parts : dict
        Name of an operator's result to the number of parts of the batch that the operator takes one after the other.
        Operators that take the whole batch at once are left out.
    choices : dict
        Name of an operator's result to the number of the way that was chosen of those that were tried in order, each an
        operator and a number of parts. It is empty with an engine.

    Raises
    ------
    ModelError
        The file has another operator than these.
    DeviceError
        PyTorch or onnx is not installed, or PyTorch fails, or does not take the engine.
    """

    def __init__(self, net: Net, batch: int, device: str, engine: bytes | None = None) -> None:
        torch = self._torch = load_runtime("torch").module
        try:
            import onnx
        except ImportError as error:
            raise DeviceError(
                f"runtime: got 'torch', but onnx does not load ({error}); install it with pip install \"trtseg[torch]\""
            ) from error
        self.net, self.spec, self.batch, self.device = net, net.spec, batch, device
        self.parts: dict[str, int] = {}
        self.choices: dict[str, int] = {}
        graph = onnx.load_from_string(net.onnx).graph
        self._input, self._output = graph.input[0].name, graph.output[0].name
        with self.failures():
            weights = {}
            for tensor in graph.initializer:
                weight = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()).to(device)
                if weight.ndim == 4:
                    weight = weight.to(memory_format=torch.channels_last)
                weights[tensor.name] = weight
            self._weights = list(weights.values())
            self._compiled: _Operator | None = None
            if engine is None:
                self._steps = self._chosen(self._ways(onnx, graph, weights))
            else:
                self._compiled = self._loaded(engine)

    def _ways(
        self, onnx: Any, graph: Any, weights: dict[str, Any]
    ) -> Iterator[tuple[_Step, list[_Operator]]]:
        """For each step of the graph, in order: the step with its plainest operator, and faster operators for it."""
        torch = self._torch
        readers = [name for node in graph.node for name in node.input]
        nodes = list(graph.node)
        while nodes:
            node = nodes.pop(0)
            arguments = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            own = [weights[name] for name in node.input if name in weights]
            operator, result = _operator(torch, node.op_type, arguments, own, self.spec), node.output[0]
            faster: list[_Operator] = []
            following = nodes[0] if nodes and readers.count(result) == 1 else None
            if following is not None and (node.op_type, following.op_type) == ("Conv", "Relu"):
                result = nodes.pop(0).output[0]
                operator, faster = _with_relu(torch, operator, arguments, own, self.device)
            inputs = tuple(name for name in node.input if name not in weights)
            yield (result, inputs, operator), faster

    def __call__(self, x: Any) -> Any:
        """Enqueue the net on the current stream; ``x`` ``[batch, 1, H, W]`` is channels last."""
        return self._run_steps(x) if self._compiled is None else self._compiled(x)

    @property
    def cudnn(self) -> int | None:
        """Version of the cuDNN that PyTorch has loaded, as 91900; None without one."""
        with self.failures():  # PyTorch may refuse the library that it finds
            version: int | None = self._torch.backends.cudnn.version()
        return version

    def close(self) -> None:
        """Give the memory of the GPU back; the net cannot be called any more."""
        self._steps, self._weights, self._compiled = [], [], None
        if self.device != "cpu":
            with self.failures():
                self._torch.cuda.empty_cache()

    def compile(self) -> bytes:
        """Compile the net, as it was chosen operator by operator, to the bytes of an engine.

        Raises
        ------
        DeviceError
            PyTorch's compiler fails, or needs Triton or a C compiler.
        """
        with self.failures(), self.settings(), self._compiler("cannot compile"):
            return compiled.compile_net(self._torch, self._run_steps, self._weights, self._equal_slices())

    def _loaded(self, engine: bytes) -> _Operator:
        """The function of an engine, which must give equal rows for equal slices."""
        same = self._equal_slices()
        with self.settings(), self._compiler("does not run what it compiled for"):
            function = compiled.load(self._torch, engine, self._weights, same)
            self._first_sound([(1, function)], [same])
        return function

    @contextmanager
    def _compiler(self, fault: str) -> Iterator[None]:
        """Context that raises whatever the compiler raises as a DeviceError."""
        try:
            yield
        except DeviceError:
            raise
        except Exception as error:
            if self._is_out_of_memory(error):
                raise OutOfMemoryError(f"the GPU has too little free memory ({error})") from error
            said = " ".join(str(error).split())[:300]
            raise DeviceError(
                f"runtime: PyTorch {fault} the {self.spec.role} net on {self.device} ({type(error).__name__}: {said})"
            ) from error

    def _equal_slices(self) -> Any:
        """A batch ``[batch, 1, H, W]`` of one slice of random numbers, channels last."""
        generator = self._torch.Generator().manual_seed(0)
        slice_ = self._torch.rand((1, *self.spec.size, 1), generator=generator)
        same = slice_.expand(self.batch, *self.spec.size, 1).contiguous().permute(0, 3, 1, 2)
        return same.to(self.device, getattr(self._torch, self.net.precision.dtype.name))

    def _run_steps(self, x: Any) -> Any:
        values = {self._input: x}
        for number, step in enumerate(self._steps):
            self._compute(number, step, values)
        return values[self._output]

    def _compute(self, number: int, step: _Step, values: dict[str, Any]) -> None:
        """Add the result of a step to ``values``, and drop the values that no later step reads."""
        result, inputs, operator = step
        values[result] = operator(*(values[name] for name in inputs))
        for name in inputs:
            if self._last_use.get(name, number) == number:
                values.pop(name, None)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Context in which a call computes, for one thread at a time: no gradients, no TF32, kernels chosen by rules.

        Kernels chosen by a measurement could be others in another thread or process.
        """
        cudnn = self._torch.backends.cudnn
        wanted = [(cudnn, "enabled", True), (cudnn, "benchmark", False), (cudnn, "deterministic", True)]
        with _settings, self._torch.inference_mode(), ExitStack() as users:
            for where, name, value in (*wanted, _without_tf32(self._torch.backends)):
                users.callback(setattr, where, name, getattr(where, name))
                setattr(where, name, value)
            yield

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Context that raises PyTorch's errors as trtseg's."""
        try:
            yield
        except RuntimeError as error:
            if self._is_out_of_memory(error):
                raise OutOfMemoryError(f"the GPU has too little free memory ({error})") from error
            raise DeviceError(
                f"runtime: got 'torch', but the {self.spec.role} net fails on {self.device} ({error}); use another "
                "runtime, or device='cpu'"
            ) from error

    def _is_out_of_memory(self, error: Exception) -> bool:
        """PyTorch has a class for what its own allocator lacks, and none for what CUDA or cuDNN lacks."""
        return isinstance(error, self._torch.OutOfMemoryError) or tells_of_memory(str(error))

    def _chosen(self, steps: Iterator[tuple[_Step, list[_Operator]]]) -> list[_Step]:
        """Take for each step the first operator that gives equal rows for equal slices, whatever lies in memory."""
        torch, found = self._torch, list(steps)
        self._last_use = {name: i for i, ((_, inputs, _), _) in enumerate(found) for name in inputs}
        values = {self._input: self._equal_slices()}
        halves = [2**k for k in range(1, self.batch.bit_length()) if self.batch % 2**k == 0]
        numbers = dict.fromkeys([*halves, self.batch])  # of parts
        chosen = []
        with self.settings():
            for number, ((result, inputs, plain), faster) in enumerate(found):
                ways = (*faster, plain)
                tries = [(1, operator) for operator in ways]
                tries += [
                    (n, _in_parts(torch, operator, self.batch, n)) for n in numbers for operator in ways
                ]
                parts, operator = self._first_sound(tries, [values[name] for name in inputs])
                self.choices[result] = tries.index((parts, operator))
                if parts > 1:
                    self.parts[result] = parts
                    log.info("%s net: %s is computed in %d parts of a batch", self.spec.role, result, parts)
                chosen.append((result, inputs, operator))
                self._compute(number, chosen[-1], values)
        return chosen

    def _first_sound(self, tries: list[tuple[int, _Operator]], given: list[Any]) -> tuple[int, _Operator]:
        """Return the first operator whose rows are equal for equal slices, with its number of parts."""
        for parts, operator in tries:
            # The next result goes where NaN is left now: a kernel must not read its output.
            operator(*given).fill_(float("nan"))
            value = operator(*given)
            if bool((value == value[:1]).all()):  # NaN is not equal to NaN
                return parts, operator
        raise DeviceError(
            f"runtime: got 'torch', but the {self.spec.role} net gives other logits for equal slices on "
            f"{self.device}; use another runtime, or device='cpu'"
        )


def _operator(
    torch: Any, op: str, arguments: dict[str, Any], weights: list[Any], spec: ModelSpec
) -> _Operator:
    """Make the function of an ONNX operator with its weights; a ModelError for operators that trtseg's nets lack."""
    functional = torch.nn.functional
    strides, pads = arguments.get("strides", [1, 1]), arguments.get("pads", [0, 0, 0, 0])
    plain = (
        pads[:2] == pads[2:]
        and arguments.get("group", 1) == 1
        and set(arguments.get("dilations", [1])) == {1}
        and arguments.get("auto_pad", b"NOTSET") == b"NOTSET"
        and arguments.get("ceil_mode", 0) == 0
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
) -> tuple[_Operator, list[_Operator]]:
    """Operators for a convolution with bias and ReLU: one after the other, and on a GPU both in one kernel."""
    strides, pads = arguments.get("strides", [1, 1]), arguments.get("pads", [0, 0, 0, 0])
    faster: list[_Operator] = []
    if device.startswith("cuda"):
        faster = [lambda x: torch.cudnn_convolution_relu(x, *weights, strides, pads[:2], [1, 1], 1)]
    return (lambda x: torch.relu_(convolution(x))), faster


def _in_parts(torch: Any, operator: _Operator, batch: int, n: int) -> _Operator:
    """Make an operator that takes ``n`` equal parts of the batch, one after the other."""
    size = batch // n

    def run(*given: Any) -> Any:
        firsts = range(0, batch, size)
        return torch.cat([operator(*(torch.narrow(x, 0, first, size) for x in given)) for first in firsts])

    return run
