"""The runtimes that run nets on a GPU: their names and versions, how they are imported, and where their messages go.

TensorRT and TensorRT-RTX are one API under two module names: whoever uses them is given the module.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from trtseg.errors import ArgumentError, DeviceError, OutOfMemoryError

#: All runtimes, as options and keys name them, in the order in which ``auto`` looks for them.
NAMES = ("tensorrt", "tensorrt-rtx", "torch")
#: Name of each for people.
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "torch": "PyTorch"}
#: Module of each runtime.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "torch": "torch"}
#: Command that installs each.
INSTALL = {
    "tensorrt": 'pip install "trtseg[tensorrt]"',
    "tensorrt-rtx": 'pip install "trtseg[rtx]"',
    "torch": 'pip install "trtseg[torch]"',
}
#: The oldest version of each that is used: the first TensorRT that takes the types of a net from the ONNX file without
#: being asked twice, the first TensorRT-RTX that was tried, and PyTorch as pyproject.toml asks for it.
OLDEST = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 7), "torch": (2, 7)}

#: Most slices in one run: more never pays, and a builder could take all memory of the machine.
MAX_BATCH = 256

#: Held while engines are built or loaded. A runtime has one logger in a process, so the messages of two threads could
#: not be told apart.
one_at_a_time = threading.Lock()

# Messages of each kind that are kept: an engine may warn at every run.
_MOST_MESSAGES = 100

# A logger of its own with a null handler: messages of a build must not reach stderr where nobody has set up logging.
log = logging.getLogger("trtseg.tensorrt")
log.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Runtime:
    """An imported runtime: its name, its module and that module's version."""

    name: str
    module: Any
    version: str

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{TITLES[self.name]} {self.version}"

    @property
    def needs_gpu(self) -> bool:
        """Whether the runtime builds on a GPU, and for that GPU only; TensorRT-RTX needs none."""
        return self.name != "tensorrt-rtx"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities that the runtime builds for without a GPU, as ``("sm_75", ..., "sm_120")``."""
        if self.name != "tensorrt-rtx":
            return ()
        numbers = (re.fullmatch(r"SM(\d+)", name) for name in self.module.ComputeCapability.__members__)
        return tuple(f"sm_{n}" for n in sorted(int(match[1]) for match in numbers if match))


def check_name(name: str, device: str = "cuda") -> None:
    """Refuse an unknown name of a runtime with an ArgumentError, and every name with the CPU as the device."""
    if name not in NAMES:
        *names, last = map(repr, NAMES)
        raise ArgumentError(f"runtime: got {name!r}; expected {', '.join(names)} or {last}")
    if device == "cpu":
        raise ArgumentError(
            f"runtime: got {name!r}, which runs nets on a GPU, and the device is the CPU; leave it out, or choose "
            "device 'cuda'"
        )


def check_batch(batch: object) -> int:
    """Return a number of slices in one run; an ArgumentError if ``batch`` is none."""
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
        raise ArgumentError(f"batch: got {batch!r}; expected a number of slices from 1 to {MAX_BATCH}")
    return batch


def tells_of_memory(said: str) -> bool:
    """Whether a runtime, CUDA or cuDNN says that memory was short."""
    return re.search(r"out ?of ?memory|alloc(ation)?_failed", said, re.IGNORECASE) is not None


def failure(message: str, said: str) -> DeviceError:
    """Make the error for a failed call of a runtime; its own words, ``said``, tell whether memory was short."""
    said = " ".join(said.split()) or "it gave no reason"
    if tells_of_memory(said):
        return OutOfMemoryError(f"the GPU has too little free memory: {message} ({said})")
    return DeviceError(f"{message} ({said})")


def too_old(name: str, version: str) -> str | None:
    """Say that a version of a runtime is too old and what to do, or None."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers >= OLDEST[name]:
        return None
    oldest = ".".join(map(str, OLDEST[name]))
    return f"{TITLES[name]} {version} is too old, {oldest} or newer is needed: {INSTALL[name]} --upgrade"


def load_runtime(name: str) -> Runtime:
    """Import a runtime.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Raises
    ------
    ArgumentError
        There is no such runtime.
    DeviceError
        The runtime is not installed, does not load, or is too old.
    """
    check_name(name)
    try:
        module = importlib.import_module(MODULES[name])
        version = str(module.__version__)
    except ModuleNotFoundError as error:
        if error.name != MODULES[name]:  # a part of the package is missing
            raise _broken(name, error) from error
        raise DeviceError(
            f"runtime: got {name!r}, which is not installed; install it with {INSTALL[name]}"
        ) from error
    except Exception as error:  # a library does not load: the class of the exception depends on the package
        raise _broken(name, error) from error
    problem = too_old(name, version)
    if problem is not None:
        raise DeviceError(f"runtime: got {name!r}, but {problem}")
    return Runtime(name, module, version)


def _broken(name: str, error: Exception) -> DeviceError:
    return DeviceError(
        f"runtime: got {name!r}, which is installed but does not load ({error}); "
        f"install it again with {INSTALL[name]} --force-reinstall"
    )


@functools.cache
def logger(module: Any) -> Any:
    """The one logger of a runtime's module, which the runtime keeps for the whole process.

    The runtime's messages go to the logger ``trtseg.tensorrt`` of `logging`. Warnings and errors are also collected,
    for a sidecar or an exception, until ``take()`` hands them over as two lists of strings.
    """
    levels = {
        module.ILogger.INTERNAL_ERROR: logging.ERROR,
        module.ILogger.ERROR: logging.ERROR,
        module.ILogger.WARNING: logging.WARNING,
        module.ILogger.INFO: logging.INFO,
    }

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._said = self._nothing()

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level in self._said:
                self._said[level].append(message.strip())
            log.log(level, "%s", message)

        def take(self) -> tuple[list[str], list[str]]:
            warnings, errors = self._said[logging.WARNING], self._said[logging.ERROR]
            self._said = self._nothing()
            return list(warnings), list(errors)

        @staticmethod
        def _nothing() -> dict[int, deque[str]]:
            return {level: deque(maxlen=_MOST_MESSAGES) for level in (logging.WARNING, logging.ERROR)}

    return Logger()
