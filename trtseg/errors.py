"""What can go wrong, as exceptions that a caller can tell apart.

Every message names the argument or the file, what was got, what was expected and what to do.
"""


class TrtsegError(Exception):
    """Base of every error that trtseg raises on purpose."""


class ArgumentError(TrtsegError, ValueError):
    """An argument of a call is of the wrong type, shape or range."""


class InputError(TrtsegError):
    """An image cannot be read, or is not a CT that can be segmented."""


class OutputError(TrtsegError):
    """A result cannot be written."""


class ModelError(TrtsegError):
    """A model is unknown, incomplete, or its files are not what its manifest says."""


class DeviceError(TrtsegError):
    """A device or a runtime that was asked for is not there or does not work."""


class OutOfMemoryError(DeviceError):
    """A device has too little free memory for what was asked of it."""


class BusyError(DeviceError, TimeoutError):
    """A device is behind with its work, and the time to wait for it has passed: ask again later."""


class WorkerError(DeviceError):
    """A process that segments cases of a cohort ended before its case was done, or does not start."""
