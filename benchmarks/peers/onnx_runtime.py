"""ONNX Runtime in the loop of `benchmarks.peers.student`: the shipped FP32 or INT8 (Q/DQ) files as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.peers import nets, serve, student


def runner(path: Path, threads: int) -> student.Net:
    """A session as a function of NumPy arrays."""
    options = onnxruntime.SessionOptions()  # all graph optimisations are on by default
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(None, {name: x})[0]
        return logits

    return run


def main() -> None:
    options = serve.parser()
    options.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    args = options.parse_args()
    torch.set_num_threads(args.threads)  # it scales the slices
    ending = "onnx" if args.precision == "fp32" else "int8.onnx"
    both = [runner(args.model / f"{role}.{ending}", args.threads) for role in ("liver", "tumour")]
    specs = nets.specs(args.model)
    serve.serve(lambda *job: student.label(*job, both, specs), "onnxruntime", "torch", "nibabel", "numpy")


if __name__ == "__main__":
    main()
