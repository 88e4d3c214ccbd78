"""The engines of the CPU in turns, on the calibration slices of a model: trtseg's own beside OpenVINO.

    python -m benchmarks.engines [--model default] [--threads 2] [--repeats 15]

For each net it prints ms a slice, for 16 slices in one call and for a slice alone, medians over the repeats, and how
far the logits differ, at most and in the root mean square: in FP32 from OpenVINO, in INT8 from ONNX Runtime, which
computes what the file says in FP32. In the rows "every tile" zeros are -0, of which the engine knows nothing
beforehand; in the last rows only logits in and beside the liver are wanted. "OpenVINO INT8" is what OpenVINO makes of
the file on this processor if it is left to itself, which trtseg does not do.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.program import parser_of, plain_errors
from trtseg import models
from trtseg.cascade.cpu import with_neighbours
from trtseg.engines.base import Net, logits_of
from trtseg.engines.calibration import references
from trtseg.engines.openvino import OpenVinoEngine, import_openvino
from trtseg.engines.precision import FP32, INT8
from trtseg.engines.unet import UNetEngine
from trtseg.resources import available_cpus

TOGETHER = 16
Run = Callable[[NDArray[Any], NDArray[Any]], object]


def in_turns(runs: dict[tuple[str, int], Callable[[], object]], repeats: int) -> dict[tuple[str, int], float]:
    """Median seconds of each call; the calls take turns, and the first turn does not count."""
    seconds: dict[tuple[str, int], list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            run()  # does not count: the threads of the runtime before go on waiting for a while, busily
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def openvino_int8(net: Net, threads: int) -> Run:
    """The INT8 file in OpenVINO's own arithmetic for such files."""
    core = import_openvino().Core()
    model = core.read_model(io.BytesIO(net.onnx))
    model.reshape([1, 1, *net.spec.size])
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(src: NDArray[Any], dst: NDArray[Any]) -> None:
        for i in range(len(src)):
            dst[i] = next(iter(request.infer({0: src[i : i + 1]}).values()))[0]

    return run


def as_the_file_says(net: Net, images: NDArray[Any]) -> NDArray[Any]:
    """The logits of an INT8 file, computed in FP32, operator by operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(net.onnx, options, providers=["CPUExecutionProvider"])
    logits: NDArray[Any] = session.run(None, {"x": images})[0]
    return logits


@plain_errors()
def main() -> None:
    """Parse the command line and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    files = models.find(args.model)
    shown, first = references(files), files.spec.nets[0]
    near = with_neighbours(shown[first.role].logits[:, 0] > first.logit_threshold)
    print(
        f"| net, {args.threads} threads | engine | {TOGETHER} slices, ms a slice | one slice, ms | differs at most | "
        "RMS |"
    )
    print("|---|---|---|---|---|---|")
    for spec in files.spec.nets:
        images = shown[spec.role].images
        fp32, int8 = (Net.read(files, spec, precision) for precision in (FP32, INT8))
        own, own_int8 = UNetEngine(fp32, args.threads), UNetEngine(int8, args.threads)
        engines: dict[str, Run] = {
            "trtseg FP32": own.run,
            "OpenVINO FP32": OpenVinoEngine(fp32, args.threads).run,
            "trtseg INT8": own_int8.run,
            "OpenVINO INT8": openvino_int8(int8, args.threads),
        }
        truths = {
            "FP32": logits_of(OpenVinoEngine(fp32, args.threads), images),
            "INT8": as_the_file_says(int8, images),
        }
        told = {"OpenVINO FP32": " | "}
        for name, run in engines.items():
            if name in told:
                continue
            logits = np.empty_like(truths["FP32"])
            run(images, logits)
            difference = logits - truths[name[-4:]]
            told[name] = f"{np.abs(difference).max():.1e} | {np.sqrt(np.square(difference).mean()):.1e}"
        many = np.resize(images, (TOGETHER, *images.shape[1:]))
        signed = np.where(many == 0, np.float32(-0.0), many)
        wanted = np.resize(near, (TOGETHER, *spec.size))
        logits = np.empty((TOGETHER, spec.channels, *spec.size), np.float32)
        runs: dict[tuple[str, int], Callable[[], object]] = {}
        for n in (TOGETHER, 1):
            for name, run in engines.items():
                runs[name, n] = partial(run, many[:n], logits[:n])
            for name, engine in (("trtseg FP32", own), ("trtseg INT8", own_int8)):
                runs[f"{name}, every tile", n] = partial(engine.run, signed[:n], logits[:n])
                if spec.role == "tumour":
                    beside = partial(engine.run, many[:n], logits[:n], wanted=wanted[:n])
                    runs[f"{name}, beside the liver", n] = beside
        seconds = in_turns(runs, args.repeats)
        for name in dict.fromkeys(name for name, _ in runs):
            together, alone = 1e3 * seconds[name, TOGETHER] / TOGETHER, 1e3 * seconds[name, 1]
            print(f"| {spec.role} | {name} | {together:.1f} | {alone:.1f} | {told.get(name, ' | ')} |")


if __name__ == "__main__":
    main()
