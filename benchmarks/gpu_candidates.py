"""The candidates of `benchmarks.gpu`: trtseg, and what it is compared with."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_measure import Ct
from benchmarks.gpu_race import Open
from benchmarks.gpu_report import LeftOutError
from benchmarks.gpu_torch import TorchCascade, through_host
from benchmarks.gpu_trtseg import Trtseg
from trtseg import Segmenter
from trtseg.models import ModelFiles

_NUMPY = {torch.float16: np.float16, torch.float32: np.float32}


def candidates(files: ModelFiles, model: str, runtime: str) -> dict[str, Open]:
    """How each candidate is opened, by name."""
    half, roles = torch.float16, [net.role for net in files.spec.nets]

    @functools.cache
    def segmenter(batch: int) -> Segmenter:
        return Segmenter(model, device="cuda", batch=batch, runtime=runtime)

    @functools.cache
    def nets(dtype: torch.dtype) -> list[Any]:
        return torch_nets(files, "cuda", dtype)

    @functools.cache
    def compiled() -> list[Any]:
        return [torch.compile(net, dynamic=False) for net in nets(half)]

    def ours(ct: Ct, batch: int) -> Trtseg:
        return Trtseg(segmenter(batch), ct.spacing)

    def theirs(open_nets: Callable[[Any], Any], dtype: torch.dtype = half, **options: Any) -> Open:
        options = {"device": "cuda", "dtype": dtype, **options}
        return lambda ct, batch: TorchCascade(
            files.spec, open_nets, ct.hu.shape[1:], ct.spacing, batch, **options
        )

    def on_host(dtype: torch.dtype) -> Open:
        def open_nets(_: Any) -> list[Any]:
            return [through_host(net, dtype) for net in nets(dtype)]

        return theirs(open_nets, torch.float32, device="cpu")

    def onnxruntime(stream: Any) -> list[Any]:
        return [OnnxRuntimeNet(files.read(f"{role}.fp16.onnx"), stream) for role in roles]

    return {
        "trtseg": ours,
        "eager-fp32-host": on_host(torch.float32),
        "eager-fp16-host": on_host(half),
        "eager-fp32": theirs(lambda _: nets(torch.float32), torch.float32),
        "eager-fp16": theirs(lambda _: nets(half)),
        "torch-graphs": theirs(lambda _: nets(half), graphs=True),
        "onnxruntime": theirs(onnxruntime),
        "torch-compile": theirs(lambda _: compiled(), compiled=True),
        "torch-compile-graphs": theirs(lambda _: compiled(), compiled=True, graphs=True),
    }


def torch_nets(files: ModelFiles, device: str, dtype: torch.dtype) -> list[Any]:
    """A model's own nets in PyTorch, channels last."""
    from benchmarks.cascade import torch_net  # needs onnx, which trtseg does not

    with torch.inference_mode(
        False
    ):  # called in it, weights would stay tensors that torch.compile may not take
        nets: list[Any] = [
            torch_net(files.read(f"{net.role}.onnx")).requires_grad_(False) for net in files.spec.nets
        ]
        return [net.to(device, dtype).to(memory_format=torch.channels_last) for net in nets]


class OnnxRuntimeNet:
    """A net in ONNX Runtime, on PyTorch's memory and a lane's stream."""

    def __init__(self, onnx_file: bytes, stream: Any, *, device: str = "cuda") -> None:
        try:
            onnxruntime = importlib.import_module("onnxruntime")
        except ModuleNotFoundError as error:
            raise LeftOutError("ONNX Runtime is not installed") from error
        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[device]
        options: dict[str, str] = {}
        if device == "cuda":
            options = {"user_compute_stream": str(stream.cuda_stream), "cudnn_conv_algo_search": "EXHAUSTIVE"}
        if provider not in onnxruntime.get_available_providers():
            raise LeftOutError(f"this ONNX Runtime {onnxruntime.__version__} has no {provider}")
        self._session = onnxruntime.InferenceSession(onnx_file, providers=[(provider, options)])
        used = self._session.get_providers()[0]
        if used != provider:  # it falls back to the CPU with nothing but a warning
            raise RuntimeError(f"ONNX Runtime's {provider} does not load here")
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._device = device

    def __call__(self, x: Tensor) -> Tensor:
        """Enqueue the net."""
        x = x.contiguous()
        logits = torch.empty_like(x)  # each net of a cascade has one channel
        binding = self._session.io_binding()
        where = self._device, 0, _NUMPY[x.dtype], tuple(x.shape)
        binding.bind_input("x", *where, x.data_ptr())
        binding.bind_output("logits", *where, logits.data_ptr())
        self._session.run_with_iobinding(binding, self._run_options)
        return logits
