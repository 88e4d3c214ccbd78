"""tests/gpu/kit/run.sh, with programs that only say how they were called in place of Python and the sanitizer.

And build.sh, with programs that make empty files in place of Python, nvcc, gcc and strip.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {"memcheck", "racecheck", "initcheck", "synccheck"}
PROGRAM = """#!/bin/sh
echo "${0##*/} $* (OUT=$OUT)" >> "$CALLS"
case "$*" in *"--tool initcheck"*) printf "$SAID" ;; esac
[ -z "$FAIL" ] || ! echo "$*" | grep -q "$FAIL"
"""

# The wheels that PyPI has, and of one package only a source package, as of PyCUDA.
PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "setup.py "*) touch trtseg/_core.abi.so ;;
  *" --no-binary pycuda "*)
    mkdir -p pycuda-1/src/cpp pycuda-1/src/wrapper && echo cuInit > pycuda-1/src/cpp/cuda.hpp
    tar -czf build/gpu-kit-work/pycuda-1.tar.gz pycuda-1 ;;
  "-m pip install "*) ;;
  "-m pip "*)
    while [ "$1" != -d ] && [ "$1" != -w ]; do
      case $1 in --only-binary=:all:) wheels=only ;; esac
      shift
    done
    into=$2; shift 2
    for name; do
      [ "$wheels $name" != "only tensorrt-rtx-cu13" ] || exit 1
      [ "$name" != . ] || name=pycuda
      touch "$into/$name.whl"
    done ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Run the kit in a repository of its own; exit code, what was printed, calls, and the names of the results."""
    repository, bin_ = tmp_path / "repository", tmp_path / "bin"
    kit = repository / "build" / "gpu-kit"
    for folder in (kit / "wheels", repository / "trtseg", repository / "tests" / "gpu", bin_):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "gpu" / "kit" / "run.sh", kit)
    shutil.copy(ROOT / "tests" / "gpu" / "sanitize.sh", repository / "tests" / "gpu")
    for file in (kit / "_core.abi.so", kit / "wheels" / "one.whl"):
        file.touch()
    for name in ("python3", "compute-sanitizer", "nvidia-smi"):
        (bin_ / name).write_text(PROGRAM)
        (bin_ / name).chmod(0o755)

    def run(**environment: str) -> tuple[int, str, list[str], set[str]]:
        calls, out = tmp_path / "calls", tmp_path / "out"
        calls.write_text("")
        shutil.rmtree(out, ignore_errors=True)
        own = {
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "OUT": str(out),
            "FAIL": "",
            "SAID": "",
        }
        done = subprocess.run(
            ["bash", kit / "run.sh"],
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, calls.read_text().splitlines(), {f.name for f in out.iterdir()}

    yield run
    assert (repository / "trtseg" / "_core.abi.so").exists()  # the kit's own, which is not built again


@pytest.mark.parametrize("rtx", [0, 1])
def test_the_kit_has_what_the_tests_ask_for(tmp_path, rtx):
    repository, bin_ = tmp_path / "repository", tmp_path / "bin"
    for folder in (repository / "csrc", repository / "trtseg", bin_):
        folder.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (repository / name).touch()
    shutil.copytree(ROOT / "tests" / "gpu" / "kit", repository / "tests" / "gpu" / "kit")
    for name in ("python", "nvcc", "gcc", "strip"):
        (bin_ / name).write_text(PYTHON if name == "python" else "#!/bin/sh\n")
        (bin_ / name).chmod(0o755)
    done = subprocess.run(
        ["bash", repository / "tests" / "gpu" / "kit" / "build.sh"],
        env={"PATH": f"{bin_}:{os.environ['PATH']}", "KIT_PYTHON": "python", "KIT_RTX": str(rtx)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kit = repository / "build" / "gpu-kit"
    assert {file.name for file in kit.iterdir()} == {"_core.abi.so", "run.sh", "wheels"}
    wheels = {file.stem.partition("==")[0] for file in (kit / "wheels").iterdir()}
    assert {line.split()[-1].rpartition("/")[2] for line in done.stdout.splitlines() if " MB " in line} == {
        "_core.abi.so",
        "run.sh",
        "total",
        *(file.name for file in (kit / "wheels").iterdir()),
    }
    assert {"pycuda", "nibabel", "typer", "rich", "isal", "platformdirs"} <= wheels
    assert ("tensorrt-rtx-cu13-libs" in wheels) == ("tensorrt-rtx-cu13" in wheels) == bool(rtx)


def test_tests_benchmark_and_all_sanitizers_run_without_make_and_compiler(run):
    code, said, calls, files = run()
    assert code == 0, said
    tests, bench = (
        next(c for c in calls if text in c) for text in ("-m pytest -v tests/gpu", "-m benchmarks.gpu ")
    )
    assert calls.index(tests) < calls.index(bench)
    assert any("-m benchmarks.gpu_8bit --json" in call for call in calls)
    assert "--runtime torch" in bench
    assert "--compile" in bench
    tools = [call.split()[2] for call in calls if call.startswith("compute-sanitizer --tool")]
    assert set(tools) == TOOLS
    assert len(tools) == len(TOOLS)
    assert not any("setup.py" in call for call in calls)
    assert files == {f"{name}.log" for name in ("machine", "tests", "bench", "8bit", "sanitize")}


def test_a_run_that_is_killed_leaves_no_log_of_each_sanitizer(run, tmp_path):
    """These would be four files of eight, as many as come back from some machines; what a step writes is its log."""
    _, _, calls, _ = run()
    out = {
        tool: {c.rpartition("(OUT=")[2] for c in calls if tool in c} for tool in (*TOOLS, "benchmarks.gpu ")
    }
    assert out["benchmarks.gpu "] == {f"{tmp_path / 'out'})"}
    elsewhere = set.union(*(out[tool] for tool in TOOLS))
    assert len(elsewhere) == 1
    assert f"{tmp_path / 'out'})" not in elsewhere


def test_a_step_that_fails_is_told_and_the_others_go_on(run):
    for fail in ("tests/gpu$", "benchmarks.gpu ", "racecheck", "_core"):
        code, said, calls, _ = run(FAIL=fail)
        assert code == 1, said
        assert said.count("exit code 1") == 1, said
        assert any("synccheck" in call for call in calls)
    code, said, calls, _ = run(STEPS="bench", RUNTIME="auto")
    assert (code, said.count("exit code 0")) == (0, 2)
    assert any("--runtime auto" in call for call in calls)


@pytest.mark.parametrize(
    ("kernel", "code"), [("trtseg::cuda::gate_kernel(Gate)", 1), ("at::native::fill()", 0)]
)
def test_initcheck_counts_for_our_kernels_alone(run, kernel, code):
    """It must look at all kernels, to know what they have written."""
    report = f"========= Uninitialized __global__ memory read\\n=========     at {kernel}+0x70\\n3 passed\\n"
    got, said, calls, _ = run(STEPS="sanitize", SAID=report)
    assert got == code, said
    assert (kernel in said) == bool(code)
    filtered = {call.split()[2] for call in calls if "--kernel-name kns=trtseg" in call}
    assert filtered == TOOLS - {"initcheck"}
