"""Import less: what a command needs of a package, without what the package brings along for others."""

from __future__ import annotations

import importlib
import sys


def import_nibabel() -> None:
    """Import nibabel without pydicom, where that is installed; nibabel takes it for a NIfTI extension only.

    That saves 0.3 s. trtseg never reads that extension, and in a process of the command line nobody else does.
    """
    if "pydicom" in sys.modules:
        return
    sys.modules["pydicom"] = None  # type: ignore[assignment]  # the import of such a module fails
    try:
        importlib.import_module("nibabel.nifti1")
    finally:
        del sys.modules["pydicom"]
