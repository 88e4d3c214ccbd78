"""The conversation of `benchmarks.compare` with a contender: a line of JSON for each CT in, a line of JSON out."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Labels a CT: input file, output file, and what else the job says. May return figures of its own.
Label = Callable[[Path, Path, dict[str, Any]], dict[str, Any] | None]


_answers: Any = None


def parser() -> argparse.ArgumentParser:
    """The options that every contender has. From here on, what libraries print goes to stderr."""
    global _answers
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = argparse.ArgumentParser()
    options.add_argument("--model", type=Path, required=True, help="folder with ONNX files")
    options.add_argument("--threads", type=int, required=True)
    return options


def serve(label: Label, *packages: str, **versions: str) -> None:
    """Answer jobs on stdin until it ends; tell the versions of packages first."""
    _answer({"versions": {name: importlib.metadata.version(name) for name in packages} | versions})
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        try:
            more = label(Path(job["input"]), Path(job["output"]), job) or {}
        except Exception as error:  # the other contenders go on
            _answer({"error": f"{type(error).__name__}: {error}"})
            raise
        _answer({"seconds": time.perf_counter() - start, **more})


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=_answers, flush=True)
