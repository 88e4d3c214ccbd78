"""``trtseg build`` and ``trtseg engines``, and what ``trtseg info`` says of them."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from commands import run, run_without_privileges
from engine_models import cascade_model, key, needs_rtx, sidecar

from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.driver import Driver, Gpu

ENGINE = b"an engine"


@pytest.fixture(autouse=True)
def engines(tmp_path, monkeypatch) -> Path:
    """The folder of engines, which does not exist yet."""
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture(scope="module")
def both_precisions(tmp_path_factory) -> Path:
    return cascade_model(tmp_path_factory.mktemp("model"))


def put(**changes) -> Path:
    """An engine in the cache."""
    of = key(**changes)
    cache.obtain(of, lambda: (ENGINE, sidecar(of, ENGINE)))
    return cache.entries()[0].path.with_name(of.file_name)


def error_of(done, code=2) -> str:
    assert done.exit_code == code, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@needs_rtx
class TestBuild:
    BUILD = ("build", "--runtime", "tensorrt-rtx", "--target", "sm_86,portable", "--precision", "fp16")

    def test_writes_engines_and_sidecars(self, here, both_precisions):
        done = run(*self.BUILD, "--batch", "1, 4", "--model", both_precisions, "-o", "new/engines")
        assert (done.exit_code, done.stderr) == (0, "")
        files = sorted(path.name for path in Path("new/engines").glob("*.engine"))
        assert len(files) == 8
        assert len(os.listdir("new/engines")) == 16
        for name in files:
            assert name in done.stdout
            said = json.loads(Path("new/engines", f"{name}.json").read_text())
            assert said["sha256"] == hashlib.sha256(Path("new/engines", name).read_bytes()).hexdigest()
        assert "liver sm_86 fp16 batch 4" in done.stdout
        assert "8 engines in new/engines" in done.stdout
        assert "Not for clinical use" in done.stdout

    def test_into_the_cache(self, engines, both_precisions):
        done = run("build", "--target", "sm_120", "--batch", "1", "--model", both_precisions, "--quiet")
        assert (done.exit_code, done.output) == (0, "")
        assert len(list(engines.glob("*.engine"))) == 2
        assert run("engines", "verify").stdout == f"2 of 2 engines in {engines} intact\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--batch", "1,x"], "--batch: got 'x'; expected numbers of slices with commas between them"),
            (["--batch", "-1"], "--batch: got '-1'; expected"),
            (["--target", "sm_86,turing"], "target: got 'turing'; expected 'native', 'portable', or compute"),
            (
                ["--runtime", "torch"],
                "target: got 'sm_86', but PyTorch builds only on a machine with the GPU",
            ),
            (["--model", "none"], "model: got 'none'; expected one of default, or a folder with a"),
        ],
    )
    def test_refusals(self, here, engines, both_precisions, arguments, message):
        if "torch" in arguments:
            pytest.importorskip("torch")
        done = run("build", "--target", "sm_86", "--model", both_precisions, "-o", "out", *arguments)
        assert message in error_of(done)
        assert os.listdir() == []
        assert not engines.exists()

    def test_where_one_may_not_write(self, here, both_precisions):
        (here / "locked").mkdir(mode=0o500)
        for output in ("locked", "locked/new"):
            done = run_without_privileges(
                "build", "--target", "sm_86", "--model", both_precisions, "-o", output
            )
            assert done.returncode == 2, done.stderr
            assert "ermission" in done.stderr
        assert os.listdir("locked") == []


class TestEngines:
    def test_none(self, engines, here):
        assert "0 engines in" in run("engines", "list").stdout
        assert run("engines", "verify").stdout == f"0 of 0 engines in {engines} intact\n"
        assert run("engines", "clear").stdout == f"deleted 0 files, 0.0 MB, in {engines}\n"
        for command in ("list", "verify", "clear"):
            assert "none: no folder that can be read" in error_of(run("engines", command, "none"))

    def test_list(self, engines):
        put(runtime_version="0.0.1")
        put(batch=16)
        cache.keep_acceptance(
            key(runtime_version="0.0.1"), {"accepted": True}, sha256=hashlib.sha256(ENGINE).hexdigest()
        )
        (engines / "other.engine").write_bytes(b"")
        done = run("engines", "list")
        assert done.exit_code == 0
        lines = {line.split(" batch ")[-1][:2].strip(): line for line in done.stdout.splitlines()}
        assert "tensorrt-rtx 0.0.1" in lines["1"]
        assert "yes" in lines["1"]
        assert "stale: TensorRT-RTX here is" in lines["1"]
        assert "not yet" in lines["16"]
        assert "other.engine.json: cannot be read" in " ".join(done.stdout.split())
        assert "3 engines in" in done.stdout

    def test_verify_finds_a_flipped_byte(self, engines):
        paths = [put(), put(batch=16)]
        assert run("engines", "verify").exit_code == 0
        for intact, path in zip((1, 0), paths, strict=True):
            path.write_bytes(b"aN engine")
            done = run("engines", "verify", *([engines] if intact else []))
            assert done.exit_code == (3 if intact else 2)
            assert done.stdout == f"{intact} of 2 engines in {engines} intact\n"
            lines = done.stderr.splitlines()
            assert len(lines) == 2 - intact
            assert lines[0].startswith(f"error: {paths[0]}: its SHA-256 is ")

    def test_a_cache_that_others_may_enter(self, engines):
        put()
        engines.chmod(0o755)
        for command in ("list", "verify", "clear"):
            assert "refused, since an engine file can run any code" in error_of(run("engines", command))
        assert "(mode 755)" in run("info").stdout

    def test_import(self, engines, here):
        """Engines from elsewhere: refused, then allowed and listed as one's own."""
        put()
        engines.rename("elsewhere")
        assert "to be imported" in run("engines", "list", "elsewhere").stdout
        assert "(--allow-foreign)" in error_of(run("engines", "import", "elsewhere"))
        assert not engines.exists()
        done = run("engines", "import", "elsewhere", "--allow-foreign")
        assert done.exit_code == 0
        assert f"1 engine in {engines}" in done.stdout
        assert "ready" in run("engines", "list").stdout
        assert key().file_name in run("info").stdout
        assert "none: no folder" in error_of(run("engines", "import", "none", "--allow-foreign"))

    def test_import_says_what_is_of_no_use_here(self, engines, here, monkeypatch):
        here_is = Driver("580", "13.0", (Gpu(0, "NVIDIA L4", "sm_89", 24 << 30),), None)
        monkeypatch.setattr("trtseg.engines.nvidia.driver.find_driver", lambda: here_is)
        put(target="sm_89", runtime_version="0.0.1")
        engines.rename("elsewhere")
        done = run("engines", "import", "elsewhere", "--allow-foreign")
        assert (done.exit_code, "1 engine in" in done.stdout) == (0, True)
        assert done.stderr.startswith(
            "note: no GPU here will use liver sm_89 fp16 batch 1: stale: TensorRT-RTX"
        )

    def test_clear(self, engines):
        put()
        size = sum(path.stat().st_size for path in engines.iterdir())
        assert run("engines", "clear").stdout == f"deleted 2 files, {size / 1e6:.1f} MB, in {engines}\n"
        assert os.listdir(engines) == [".lock"]


class TestInfo:
    def test_says_what_can_be_built_and_run_here_and_why_not(self, engines):
        put(runtime_version="0.0.1")
        found = json.loads(run("info", "--json").stdout)
        assert set(found["driver"]) == {"version", "cuda", "gpus", "problem"}
        able = found["abilities"]
        places = len(found["driver"]["gpus"]) or 1
        runs = [a["runtime"] for a in able if a["task"] == "run"]
        assert sorted(runs) == sorted(places * ["tensorrt", "tensorrt-rtx", "torch"])
        assert all(a["works"] or a["detail"] for a in able)
        assert not any(a["works"] for a in able if a["task"] == "build" and a["runtime"] == "torch")
        (engine,) = found["engines"]
        assert engine["file"] == key(runtime_version="0.0.1").file_name
        assert engine["problem"].startswith("stale: ")
        text = run("info").stdout
        for words in (
            "driver",
            "tensorrt-rtx",
            "torch",
            "build",
            "run",
            "1 in your cache",
            engine["problem"],
        ):
            assert words in " ".join(text.split())
