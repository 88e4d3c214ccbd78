"""How long the 3x3 convolutions of the nets take on a GPU in FP16, in FP8 and in INT8, by cuDNN.

    python -m benchmarks.gpu_8bit [--json FILE] [--model default] [--batch 16]

An engine of 8 bits could gain what these gain, and no more in its convolutions. In 8 bits a layer is timed with the
next multiple of 16 channels. Bias, ReLU and scales are left out, and all numbers are random: no label comes out. Where
cuDNN does not run a layer in a type it says why. It needs nvidia-cudnn-frontend.

The exit code is 2 without a GPU or without that package, and 1 if a layer does not run in FP16.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from training.program import parser_of, plain_errors
from trtseg import models
from trtseg.io.atomic import atomic

#: Type of inputs and weights, of sums, and of the result, or those that are tried in turn.
TYPES = {
    "fp16": ("HALF", "FLOAT", ("HALF",)),
    "fp8": ("FP8_E4M3", "FLOAT", ("FP8_E4M3", "HALF", "FLOAT")),
    "int8": ("INT8", "INT32", ("INT8", "INT32", "FLOAT")),
}
WIDTH = {"HALF": 2, "FLOAT": 4, "INT32": 4, "FP8_E4M3": 1, "INT8": 1}  # bytes
RUNS, REPEATS = 20, 20


class Layer(NamedTuple):
    """Channels in and out of a 3x3 convolution, and the pixels along an axis."""

    channels: int
    features: int
    size: int


def layers(onnx_file: bytes) -> Counter[Layer]:
    """The 3x3 convolutions of a net, and how often it has each."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_file)).graph
    sizes = {v.name: v.type.tensor_type.shape.dim[-1].dim_value for v in (*graph.input, *graph.value_info)}
    weights = {w.name: tuple(w.dims) for w in graph.initializer}
    convolutions = [(weights[n.input[1]], sizes[n.input[0]]) for n in graph.node if n.op_type == "Conv"]
    return Counter(Layer(w[1], w[0], size) for w, size in convolutions if w[2:] == (3, 3))


def padded(layer: Layer, multiple: int) -> Layer:
    """The layer with channels and features rounded up."""
    return layer._replace(
        **{n: -(-getattr(layer, n) // multiple) * multiple for n in ("channels", "features")}
    )


def graph_of(
    cudnn: Any, layer: Layer, batch: int, types: tuple[str, str, str], handle: Any
) -> tuple[Any, ...]:
    """A convolution of maps that are channels last, of type, sums and result; the graph, and its x, w and y."""
    kind, sums, result = (getattr(cudnn.data_type, name) for name in types)
    size, wide, deep = layer.size, layer.channels, layer.features
    graph = cudnn.pygraph(
        io_data_type=kind, intermediate_data_type=sums, compute_data_type=sums, handle=handle
    )

    def tensor(name: str, dim: list[int]) -> Any:
        _, c, h, w = dim
        return graph.tensor(name=name, dim=dim, stride=[c * h * w, 1, c * w, c], data_type=kind)

    x, w = tensor("x", [batch, wide, size, size]), tensor("w", [deep, wide, 3, 3])
    y = graph.conv_fprop(image=x, weight=w, padding=[1, 1], stride=[1, 1], dilation=[1, 1])
    y.set_output(True).set_data_type(result)
    graph.validate()
    return graph, x, w, y


def microseconds(cudnn: Any, handle: Any, layer: Layer, batch: int, name: str) -> dict[str, Any]:
    """Median time of a layer in a type, and the type of its result; or why there is none."""
    kind, sums, results = TYPES[name]
    failed = {}
    for result in results:
        try:
            return {"us": _median(cudnn, handle, layer, batch, (kind, sums, result)), "result": result}
        except Exception as error:  # of classes of the package
            failed[result] = " ".join(str(error).split())[:160]
    return {"failed": failed}


def _median(cudnn: Any, handle: Any, layer: Layer, batch: int, types: tuple[str, str, str]) -> float:
    """Microseconds of a run, of many that are recorded in a CUDA graph: launches one by one would take longer."""
    import torch

    cuda: Any = torch.cuda  # it has no types
    stream = cuda.Stream()
    cudnn.set_stream(handle=handle, stream=stream.cuda_stream)
    graph, *tensors = graph_of(cudnn, layer, batch, types, handle)
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])

    def memory(values: int, kind: str) -> Any:
        """Bytes that are small numbers in each type, drawn by the CPU: a failed capture stops the GPU's generator."""
        return torch.randint(64, (values * WIDTH[kind],), dtype=torch.uint8).cuda()

    maps = batch * layer.size**2
    values = (layer.channels * maps, 9 * layer.channels * layer.features, layer.features * maps)
    kinds = (types[0], types[0], types[2])
    arrays = {tensor: memory(*of) for tensor, *of in zip(tensors, values, kinds, strict=True)}
    workspace = torch.empty(max(graph.get_workspace_size(), 1), dtype=torch.uint8, device="cuda")
    cuda.synchronize()
    graph.execute(arrays, workspace, handle=handle)
    stream.synchronize()
    recorded, times = cuda.CUDAGraph(), []
    with cuda.graph(recorded, stream=stream):
        for _ in range(RUNS):
            graph.execute(arrays, workspace, handle=handle)
    with cuda.stream(stream):
        for _ in range(REPEATS):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            recorded.replay()
            end.record()
            end.synchronize()
            times.append(1e3 * start.elapsed_time(end) / RUNS)
    return statistics.median(times)


@plain_errors()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module's docstring."""
    parser = parser_of(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="all results; written after every layer")
    parser.add_argument("--model", default="default")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(argv)
    import torch

    try:
        import cudnn
    except ImportError as error:
        print(f"benchmarks.gpu_8bit: needs nvidia-cudnn-frontend ({error})", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("benchmarks.gpu_8bit: needs a GPU and PyTorch with CUDA", file=sys.stderr)
        return 2
    files, all_layers = models.find(args.model), Counter[Layer]()
    for net in files.spec.nets:
        all_layers += layers(files.read(f"{net.role}.onnx"))
    handle = cudnn.create_handle()
    data: dict[str, Any] = {"cuDNN": cudnn.backend_version(), "frontend": cudnn.__version__, "layers": []}
    for layer, times in sorted(all_layers.items(), key=lambda item: -item[0].size):
        found = {
            name: microseconds(cudnn, handle, padded(layer, 1 if name == "fp16" else 16), args.batch, name)
            for name in TYPES
        }
        data["layers"].append({**layer._asdict(), "times": times, **found})
        print(layer, times, found, flush=True)
        if args.json is not None:
            with atomic(args.json) as (path,):
                path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    failed = [layer for layer in data["layers"] if "us" not in layer["fp16"]]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
