"""The import order of the package, and what importing it costs."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trtseg

ROOT = Path(trtseg.__file__).parent
REPOSITORY = Path(__file__).resolve().parents[1]

# A module may import modules of its own layer and of the layers before it in this list. Add a new module
# where it belongs; a package's name stands for everything in it.
LAYERS = [
    ["errors", "notice", "warnings", "resources", "terminal", "threads", "_core"],
    ["volume", "cuda"],
    ["fit"],
    ["body"],
    ["spec", "labels"],
    ["orientation", "phantom", "reference"],
    ["io", "models"],
    ["metrics", "report"],
    ["engines"],
    ["cascade"],
    ["result", "sample"],
    ["stream"],
    ["api"],
    ["cohort", "followup", "pairs", "adapters"],
    ["node"],
    ["cli", "__main__"],
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

HEAVY = {
    "PIL",
    "SimpleITK",
    "highdicom",
    "isal",
    "matplotlib",
    "nibabel",
    "onnx",
    "onnxruntime",
    "openvino",
    "scipy",
}
HEAVY |= {"platformdirs", "pycuda", "pydicom", "pynetdicom", "rich", "sklearn", "tensorrt", "tensorrt_rtx"}
HEAVY |= {"fsspec", "ray", "typer"}
HEAVY |= {"holoscan", "monai"}
MAY_BE_HEAVY = {"adapters": {"holoscan", "monai"}, "cli": {"typer"}, "node": {"pynetdicom"}}
NEVER = {"torch", "training", "tests", "benchmarks"}

FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """``io`` for ``trtseg/io/nifti.py``, ``api`` for ``trtseg/api.py``."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules imported anywhere in ``tree``, but for types that only a checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def module_level(tree: ast.Module) -> ast.Module:
    """The module without the bodies of its functions."""

    class DropBodies(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    return DropBodies().visit(tree)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# The package's own __init__ is no layer: it imports its public names on first use, from all of them.
@pytest.mark.parametrize(
    "path", [p for p in FILES if p != ROOT / "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_nothing_imports_upwards(path):
    here = part(path)
    assert here in LAYER, f"{here}: give it a layer in this test"
    for name in imports(parse(path)):
        first, *rest = name.split(".")
        if first == "trtseg" and rest[0] in LAYER:
            assert LAYER[rest[0]] <= LAYER[here], f"{here} imports {name}, which lies above it"


# The rooms of engines; `trtseg/engines/__init__.py`, the one if-chain, stands above them all.
ENGINE_LAYERS = [["precision", "trust"], ["base", "blobs", "processor", "quantised"]]
ENGINE_LAYERS += [["openvino", "onnxruntime", "unet"]]
ENGINE_LAYERS += [["calibration"], ["acceptance"], ["nvidia.driver", "nvidia.runtime", "nvidia.sidecar"]]
ENGINE_LAYERS.append(["nvidia.machine", "nvidia.cache", "nvidia.serialize", "nvidia.compiled"])
ENGINE_LAYERS += [["nvidia.torch_net"], ["nvidia.build", "nvidia.tensorrt", "nvidia.torch"], ["nvidia.nets"]]


def test_nothing_in_engines_imports_upwards():
    """So the acceptance gate knows no GPU."""
    ranks = {f"trtseg.engines.{name}": rank for rank, names in enumerate(ENGINE_LAYERS) for name in names}
    for path in (ROOT / "engines").rglob("*.py"):
        here = ".".join(["trtseg", *path.relative_to(ROOT).with_suffix("").parts])
        if path.name == "__init__.py":
            continue
        assert here in ranks, f"{here}: give it a layer in this test"
        for name in imports(parse(path)):
            for module in {name, name.rpartition(".")[0]} & ranks.keys():
                assert ranks[module] <= ranks[here], f"{here} imports {module}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_imports_torch_or_training(path):
    """The runtime of that name imports PyTorch by its name, as all runtimes are imported."""
    for name in imports(parse(path)):
        assert name.split(".")[0] not in NEVER, f"{path}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_modules_are_imported_on_first_use(path):
    allowed = MAY_BE_HEAVY.get(part(path), set())
    for name in imports(module_level(parse(path))):
        assert name.split(".")[0] not in HEAVY - allowed, (
            f"{path}: import {name} inside the function that needs it"
        )


def test_results_never_come_from_the_reference():
    for path in FILES:
        assert "trtseg.reference" not in " ".join(imports(parse(path))), path


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize("statement", ["import trtseg", "import trtseg.api"])
def test_importing_loads_nothing_heavy(statement):
    loaded = modules_after(statement)
    assert not loaded & (HEAVY | NEVER)
    assert len(loaded - modules_after("import numpy")) < 160  # which counts what takes the time


def test_a_source_tree_that_is_not_built_says_so(tmp_path):
    source = Path(trtseg.__file__).parent
    shutil.copytree(
        source, tmp_path / "trtseg", ignore=shutil.ignore_patterns("*.so", "*.onnx", "__pycache__")
    )
    own = (
        "import sys; from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder\n"
        "sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]  # not that of an editable install\n"
    )

    def run(code):
        return subprocess.run(
            [sys.executable, "-c", own + code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = (
        f"trtseg: {tmp_path / 'trtseg'} holds no extension _core compiled for Python {version}; if that is a source "
        "tree, start Python outside of it, or build the extension there: pip install -e ."
    )
    done = run("import trtseg; print(trtseg.__version__); trtseg.segment")
    assert done.stdout == f"{trtseg.__version__}\n"
    assert done.stderr.splitlines()[-1] == f"ImportError: {said}"
    done = run("sys.argv[1:] = ['info']; from trtseg.cli import main; main()")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {said}\n")


def test_the_public_names_exist():
    for name in trtseg.__all__:
        assert getattr(trtseg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trtseg.nonsense
    assert set(trtseg.__all__) <= set(dir(trtseg))
    assert len(trtseg.__all__) <= 10


def test_a_type_checker_knows_every_public_name_and_no_other(tmp_path):
    """And what a module that a document names holds, after ``import trtseg`` alone."""
    pytest.importorskip("mypy")
    names = sorted({*trtseg._NAMES, *trtseg._MODULES, "metrics.evaluate_case"})
    unknown = ["trtseg.segmnt", "trtseg.metrics.evaluate_cse"]
    user = tmp_path / "user.py"
    user.write_text(
        "\n".join(["import trtseg", *(f"reveal_type(trtseg.{name})" for name in names), *unknown])
    )
    # With the settings, and so the cache, of `make lint`.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", REPOSITORY / "pyproject.toml", user],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    *lines, _ = done.stdout.splitlines()
    revealed, refused = lines[: len(names)], lines[len(names) :]
    assert len(lines) == len(names) + len(unknown), done.stdout + done.stderr
    assert not [line for line in revealed if line.endswith('"Any"')]
    for name, line in zip(unknown, refused, strict=True):
        assert f'Module has no attribute "{name.rpartition(".")[2]}"' in line
