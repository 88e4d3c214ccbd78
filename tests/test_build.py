"""What setup.py decides, and what the extension says of itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trtseg import _core

ROOT = Path(__file__).resolve().parents[1]


# Writes an empty file where the compiler or linker would put its output.
OUTPUT = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : >"$2"; shift; done'

CUDA_SOURCES = ("ops_cuda", "graph_cuda")
ALL_ARCHS = "75 80 86 87 88 89 90 100 103 110 120 121"  # CUDA 13.0
CUDA_12_4 = "50 52 53 60 61 62 70 72 75 80 86 87 89 90"


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


def fake_toolkit(
    home: Path,
    archs: str = ALL_ARCHS,
    version: str = "13.0",
    *,
    has_cudart: bool = True,
    listing: str = "",
    probe: str = OUTPUT,
    compiling: str = OUTPUT,
) -> Path:
    """Make a CUDA_HOME whose nvcc logs what it is asked to compile and answers as one of `version` does."""
    if has_cudart:
        (home / "lib64").mkdir(parents=True)
        (home / "lib64" / "libcudart_static.a").touch()
    script(
        home / "bin" / "nvcc",
        'case "$*" in',
        f'  *--version*) echo "Cuda compilation tools, release {version}, V{version}.1" ;;',
        f"  *--list-gpu-arch*) {listing or f'for a in {archs}; do echo compute_$a; done'} ;;",
        f"  *--dryrun*) echo '#$ LIBRARIES=  \"-L{home}/lib64\"' >&2 ;;",
        f"  *probe.cu*) {probe} ;;",
        f'  *) echo "$*" >>"{home}/log"; {compiling} ;;',
        "esac",
    )
    return home


# Runs setup.py on a machine of another name: MACHINE ARGUMENTS...
ELSEWHERE = """import platform, runpy, sys
platform.machine = lambda machine=sys.argv.pop(1): machine
runpy.run_path(sys.argv.pop(1), run_name="__main__")"""
# Runs setup.py with a Python whose headers would lie in another folder: FOLDER ARGUMENTS...
OTHER_HEADERS = """import runpy, sys, sysconfig
sysconfig.get_path = lambda name, *_, folder=sys.argv.pop(1), true=sysconfig.get_path, **__: (
    folder if name == "include" else true(name)
)
runpy.run_path(sys.argv.pop(1), run_name="__main__")"""


def build(
    tmp_path: Path,
    machine: str | None = None,
    refused: str = "",
    headers: Path | None = None,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Run setup.py build_ext with a C++ compiler that does nothing but log, and fails where it is given one flag."""
    pytest.importorskip("pybind11", reason="pybind11 is not installed")
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    refusal = f'case " $* " in *" {refused or "none"} "*) exit 1 ;; esac'
    cxx = str(script(tmp_path / "cxx", refusal, f'echo "$*" >>"{tmp_path}/cxx.log"', OUTPUT))
    run = ("-c", ELSEWHERE, machine) if machine else ("-c", OTHER_HEADERS, headers) if headers else ()
    command = [sys.executable, *run, "setup.py", "build_ext"]
    command += ["--build-temp", tmp_path / "t", "--build-lib", tmp_path / "l"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRTSEG_")}
    env |= {"CC": cxx, "CXX": cxx, "LDSHARED": cxx, "LDCXXSHARED": cxx} | environment
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def decision(done: subprocess.CompletedProcess) -> str:
    """Return the one line that setup.py prints."""
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("trtseg: ")]
    return line


def refusal(done: subprocess.CompletedProcess) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TRTSEG_CUDA": "bogus"}, "TRTSEG_CUDA: got 'bogus', expected auto, 0 or 1."),
        ({"TRTSEG_CUDA": "0", "MAX_JOBS": "many"}, "MAX_JOBS: got 'many', expected a number."),
    ],
)
def test_unknown_values_fail(tmp_path, environment, message):
    assert refusal(build(tmp_path, **environment)) == message


def test_without_a_compiler_it_says_so_at_the_end(tmp_path):
    """There a newcomer looks, who has never heard of the compiler that Python was built with."""
    message = refusal(build(tmp_path, TRTSEG_CUDA="0", CC="some-gcc", CXX="some-g++"))
    assert message.startswith(
        "error: there is no C++ compiler some-g++; install g++ (Debian, Ubuntu: apt install g++;"
    )


def test_without_headers_of_python_it_says_so_at_the_end(tmp_path):
    message = refusal(build(tmp_path, refused="-Wextra", headers=tmp_path / "none", TRTSEG_CUDA="0"))
    assert message.startswith(
        f"error: there is no Python.h in {tmp_path}/none; install the headers of this Python"
    )


def test_a_compiler_that_fails_speaks_for_itself(tmp_path):
    message = refusal(build(tmp_path, refused="-Wextra", TRTSEG_CUDA="0"))
    assert message.startswith("error: ")
    assert "failed with exit code 1" in message or "non-zero exit status 1" in message


@pytest.mark.parametrize(("cuda", "archs"), [("auto", "hopper"), ("auto", ""), ("1", "90a")])
def test_what_is_no_architecture_fails_before_nvcc_is_asked(tmp_path, cuda, archs):
    script(tmp_path / "bin" / "nvcc", "exit 9")
    done = build(tmp_path, TRTSEG_CUDA=cuda, TRTSEG_CUDA_ARCHS=archs, CUDA_HOME=str(tmp_path))
    assert refusal(done).startswith(f"TRTSEG_CUDA_ARCHS: got {archs!r}, expected numbers such as")


@pytest.mark.parametrize(
    ("known", "version", "compiled"),
    [
        (ALL_ARCHS, "13.0", [75, 80, 86, 87, 89, 90, 100, 110, 120]),
        ("90 90a 100 100a 100f 120 121 130", "14.0", [90, 100, 120]),
    ],
)
def test_compiles_for_the_architectures_that_nvcc_knows(tmp_path, known, version, compiled):
    home = fake_toolkit(tmp_path / "cuda", known, version)
    line = decision(build(tmp_path, CUDA_HOME=str(home)))
    assert line == (
        f"trtseg: building with CUDA ({home}/bin/nvcc, CUDA {version}, sm_{', '.join(map(str, compiled))})"
    )
    newest = compiled[-1]
    compilations = (home / "log").read_text().splitlines()
    assert len(compilations) == len(CUDA_SOURCES)
    for words in compilations:
        assert [word for word in words.split() if word.startswith("-gencode")] == [
            *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in compiled),
            f"-gencode=arch=compute_{newest},code=compute_{newest}",
        ]
    cxx_log = (tmp_path / "cxx.log").read_text()
    assert f'-DTRTSEG_CUDA_ARCHS="{",".join(map(str, compiled))}"' in cxx_log
    assert str(home / "lib64" / "libcudart_static.a") in cxx_log.splitlines()[-1]  # is linked


@pytest.mark.parametrize("cuda", ["auto", "1"])
def test_a_named_architecture_that_nvcc_does_not_know_fails(tmp_path, cuda):
    home = fake_toolkit(tmp_path / "cuda", CUDA_12_4, "12.4")
    message = refusal(build(tmp_path, CUDA_HOME=str(home), TRTSEG_CUDA=cuda, TRTSEG_CUDA_ARCHS="90,120"))
    assert message.startswith(
        f"TRTSEG_CUDA_ARCHS: got 120, which {home}/bin/nvcc (CUDA 12.4) does not know, expected some of 50, 52,"
    )


NO_GOOD = {
    "no nvcc": (None, "there is no nvcc in CUDA_HOME"),
    "no program": ({}, "nvcc cannot be run (Exec format error)"),
    "old architectures only": (
        {"archs": "50 60 70"},
        "(CUDA 13.0) knows none of sm_75, 80, 86, 87, 89, 90, 100, 110, 120",
    ),
    "host compiler too new": (
        {"probe": "echo In file; echo 'error: #error -- unsupported GNU version!' >&2; exit 1"},
        "nvcc fails (error: #error -- unsupported GNU version!)",
    ),
    "no static runtime": ({"has_cudart": False}, "nvcc has no libcudart_static.a"),
}


@pytest.mark.parametrize("name", NO_GOOD)
def test_an_nvcc_that_is_no_good_is_left_out_unless_cuda_is_demanded(tmp_path, name):
    options, why = NO_GOOD[name]
    home = tmp_path / "cuda"
    if options is not None:
        fake_toolkit(home, **options)
    if name == "no program":
        (home / "bin" / "nvcc").write_bytes(b"\0\0\0\0")
    line = decision(build(tmp_path, CUDA_HOME=str(home)))
    assert line.startswith("trtseg: building without CUDA (")
    assert why in line
    assert "-DTRTSEG_CUDA=1" not in (tmp_path / "cxx.log").read_text()
    assert not (home / "log").exists()
    message = refusal(build(tmp_path, CUDA_HOME=str(home), TRTSEG_CUDA="1"))
    assert message.startswith("TRTSEG_CUDA=1, but ")
    assert why in message
    assert ": install the " in message


def test_nvcc_is_not_asked_where_cuda_is_unwanted(tmp_path):
    script(tmp_path / "bin" / "nvcc", f'touch "{tmp_path}/asked"')
    line = decision(build(tmp_path, CUDA_HOME=str(tmp_path), TRTSEG_CUDA="0", TRTSEG_CUDA_ARCHS="hopper"))
    assert line == "trtseg: building without CUDA (TRTSEG_CUDA=0)"
    assert not (tmp_path / "asked").exists()


def test_a_failing_compilation_is_one_sentence(tmp_path):
    home = fake_toolkit(tmp_path / "cuda", compiling="echo 'ops_cuda.cu(7): error: bad' >&2; exit 1")
    done = build(tmp_path, CUDA_HOME=str(home))
    assert "ops_cuda.cu(7): error: bad" in done.stderr
    message = refusal(done)
    assert message == "error: nvcc failed on csrc/ops_cuda.cu, see above; TRTSEG_CUDA=0 builds without CUDA"


DOT, I8MM, AVX_VNNI = "-march=armv8.2-a+dotprod", "-march=armv8.2-a+i8mm", "-mavxvnni"


@pytest.mark.parametrize(
    ("machine", "refused", "expected"),
    [
        ("aarch64", "", {"conv_int8_asimddp": DOT, "conv_int8_i8mm": I8MM}),
        ("aarch64", I8MM, {"conv_int8_asimddp": DOT}),
        ("aarch64", DOT, {"conv_int8_i8mm": I8MM}),
        ("x86_64", "", {"conv_int8_avx_vnni": AVX_VNNI}),
        ("x86_64", AVX_VNNI, {}),
        ("riscv64", "", {}),
    ],
)
def test_new_instructions_are_for_the_files_that_ask_for_them(tmp_path, machine, refused, expected):
    """A flag that a compiler does not know is left out, and the file is built all the same."""
    decision(build(tmp_path, machine, refused, TRTSEG_CUDA="0"))
    found, compiled = {}, set()
    for line in (tmp_path / "cxx.log").read_text().splitlines():
        words = line.split()
        for name in [Path(word).stem for word in words if word.startswith("csrc/")]:
            compiled.add(name)
            for flag in {DOT, I8MM, AVX_VNNI} & {*words}:
                found[name] = flag
            assert name.startswith("conv") or not [w for w in words if w.startswith(("-march", "-mavx"))]
    assert found == expected
    assert compiled == {path.stem for path in (ROOT / "csrc").glob("*.cpp")}


@pytest.mark.parametrize(("werror", "expected"), [({}, False), ({"TRTSEG_WERROR": "1"}, True)])
def test_warnings_are_errors_only_on_demand(tmp_path, werror, expected):
    home = fake_toolkit(tmp_path / "cuda")
    decision(build(tmp_path, CUDA_HOME=str(home), **werror))
    assert ("-Werror=all-warnings" in (home / "log").read_text()) == expected
    assert ("-Xcompiler=-Werror" in (home / "log").read_text()) == expected
    assert ("-Werror" in (tmp_path / "cxx.log").read_text().split()) == expected  # Debian has -Werror=...


def test_the_cuda_sources_compile_without_a_warning(tmp_path):
    line = decision(done := build(tmp_path, TRTSEG_CUDA_ARCHS="90", TRTSEG_WERROR="1"))
    if line.startswith("trtseg: building without CUDA"):
        pytest.skip(line)
    assert "warning" not in done.stderr
    for source, symbol in zip(CUDA_SOURCES, (b"prepare_kernel", b"wait_for"), strict=True):
        (target,) = tmp_path.rglob(f"{source}.o")
        assert symbol in target.read_bytes()


@pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd")
def test_the_extension_needs_no_cuda_library():
    done = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True)
    assert "libc.so" in done.stdout
    assert "cuda" not in done.stdout.lower().replace(str(_core.__file__).lower(), "")
    assert "not found" not in done.stdout


def test_named_architectures_are_compiled_and_no_others(tmp_path):
    home = fake_toolkit(tmp_path / "cuda", CUDA_12_4, "12.4")
    done = build(tmp_path, CUDA_HOME=str(home), TRTSEG_CUDA_ARCHS="86, 70,86")
    assert "CUDA 12.4, sm_70, 86)" in decision(done)
    assert "code=compute_86" in (home / "log").read_text()


def test_the_source_distribution_holds_what_builds_it_and_no_tests(tmp_path):
    """Of the tests it would hold some, without what they import."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    held = set((tmp_path / "trtseg.egg-info/SOURCES.txt").read_text().splitlines())
    assert {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} <= held
    assert {"setup.py", "LICENSE", "trtseg/report/web/case.js", "trtseg/models/default/liver.onnx"} <= held
    assert not [name for name in held if name.startswith("tests/")]


def test_make_passes_over_pythons_that_are_not_there(tmp_path):
    """Six names are tried. What is there and will not do is named, and so is one that is asked for."""
    script(tmp_path / "bin" / "python3.12", "echo is older than 3.11 >&2; exit 1")
    script(tmp_path / "bin" / "python3.14", "exit 0")
    script(tmp_path / "bin" / "c++", "exit 0")
    for tool in ("sh", "tail", "find", "make"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"there is no {tool}"))
    command = ["make", "-s", "-f", ROOT / "Makefile", ".venv/demo/bin/python"]
    options = {"cwd": tmp_path, "env": {"PATH": str(tmp_path / "bin")}, "capture_output": True, "text": True}
    (tmp_path / "trtseg").mkdir()
    done = subprocess.run(command, check=True, **options)
    assert done.stderr == "python3.12: is older than 3.11\n"
    done = subprocess.run([*command, "PYTHON=python3.99"], check=False, **options)
    assert done.returncode != 0
    assert done.stderr.startswith("python3.99: ")
    assert "no Python >= 3.11 with venv and headers found" in done.stderr
