"""PyTorch's compiler: a net as kernels made for it, in which bias, ReLU, pooling and concatenation are fused.

What it makes is the engine file of the runtime ``torch``: `compile_net` gives the bytes, `load` makes a function of
them. The compiler measures some of its kernels and keeps the fastest. The choice is part of the bytes, so all processes
run the same kernels. The weights are not in them.
"""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtseg.engines.nvidia.runtime import one_at_a_time

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def compile_net(torch: Any, function: Callable[[Any], Any], weights: Sequence[Any], x: Any) -> bytes:
    """Compile a function of PyTorch's operators for one shape.

    Parameters
    ----------
    torch : module
        PyTorch.
    function : callable
        From slices to logits.
    weights : sequence of Tensor
        All tensors that the function uses beside its argument.
    x : Tensor
        Slices.

    Raises
    ------
    Exception
        Whatever the compiler raises: it is large, and needs Triton and a C compiler.
    """
    traced = torch.fx.symbolic_trace(lambda x: function(x))  # which takes no methods
    _pass_weights(torch, traced, weights)
    module = torch.fx.GraphModule(torch.nn.Module(), traced.graph)  # without the weights
    with _own_folder() as folder:
        made = torch._inductor.standalone_compile(module, [x, *weights], dynamic_shapes="from_example_inputs")
        made.save(path=os.fspath(folder / "net"), format="binary")
        return (folder / "net").read_bytes()


def load(torch: Any, data: bytes, weights: Sequence[Any], x: Any) -> Callable[[Any], Any]:
    """Make a function from slices to logits of the bytes of `compile_net`, for the same weights in the same order.

    Its first run, with ``x``, is made here: it reads the kernels from files that are gone afterwards.

    Raises
    ------
    Exception
        Whatever PyTorch raises for bytes of another version or machine.
    """
    _convolution_relu(torch)
    with _own_folder() as folder:
        (folder / "net").write_bytes(data)
        made = torch._inductor.CompiledArtifact.load(path=os.fspath(folder / "net"), format="binary")
        made(x, *weights)
    return lambda x: made(x, *weights)[0]


def _pass_weights(torch: Any, module: Any, weights: Sequence[Any]) -> None:
    """Make arguments of all weights in a traced function: as constants they would be part of the compiled code."""
    graph = module.graph
    last, given = next(iter(graph.nodes)), {}
    for number, weight in enumerate(weights):
        with graph.inserting_after(last):
            last = given[id(weight)] = graph.placeholder(f"weight{number}")
    for node in list(graph.nodes):
        if node.op == "get_attr":
            node.replace_all_uses_with(given[id(getattr(module, node.target))])
            graph.erase_node(node)
        elif node.op == "call_function" and node.target is torch.cudnn_convolution_relu:
            node.target = _convolution_relu(torch)
        elif node.op == "output":
            node.args = ((node.args[0],),)


@functools.cache
def _convolution_relu(torch: Any) -> Any:
    """Convolution, bias and ReLU of cuDNN as an operator that the compiler takes: it asks for the shape first."""
    schema = (
        "(Tensor x, Tensor w, Tensor? b, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor"
    )

    def run(*given: Any) -> Any:
        return torch.cudnn_convolution_relu(*given).contiguous(memory_format=torch.channels_last)

    def shape(*given: Any) -> Any:
        return torch.nn.functional.conv2d(*given).contiguous(memory_format=torch.channels_last)

    operator = torch.library.custom_op("trtseg::convolution_relu", run, mutates_args=(), schema=schema)
    operator.register_fake(shape)
    return torch.ops.trtseg.convolution_relu.default


@contextmanager
def _own_folder() -> Iterator[Path]:
    """The compiler's files are in a folder of this process's own: its usual folder may belong to another user.

    The compiler's warnings, of TF32 for example, are for those who write PyTorch programs.
    """
    importlib.import_module("torch._inductor")
    with (
        one_at_a_time,
        warnings.catch_warnings(action="ignore"),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        before = os.environ.get(_FOLDER)
        os.environ[_FOLDER] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[_FOLDER]
            if before is not None:
                os.environ[_FOLDER] = before
