"""Run a script with another build of trtseg._core: start.py MODULE SCRIPT ARGUMENTS..."""

import importlib.util
import runpy
import sys
from pathlib import Path

module, script, *arguments = sys.argv[1:]
here = Path(__file__).resolve().parent  # played_pycuda
sys.path[:1] = [str(p) for p in (Path(script).resolve().parent, here, here.parent, here.parents[1])]
spec = importlib.util.spec_from_file_location("trtseg._core", module)
core = sys.modules["trtseg._core"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
