"""Nobody is called and nothing is left behind: all commands and the API, watched by Python and by the kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trtseg

# Writes a line for each connection that the process or a child tries, and for each file that it writes.
WATCH = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        if event != "socket.connect" or isinstance(args[-1], tuple):  # else a socket of this machine, by its path
            note("network " + repr(args[-1]))
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        note("file " + os.path.realpath(os.fsdecode(args[0])) if isinstance(args[0], (str, bytes)) else "file ?")
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.fork"):
        note("process " + repr(args))
def note(line):
    os.write(log, (line + "\\n").encode())
log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(hook)
"""
# There is no guard of __main__: any process that multiprocessing starts would run it all again.
SCRIPT = """
import importlib.util, multiprocessing, sys
_, model, method = sys.argv
multiprocessing.set_start_method(method, force=True)
print("once", flush=True)
import trtseg
from trtseg.cli import app
commands = [
    ["segment", "ct.nii.gz", "--model", model, "-o", "out.nii.gz", "--report", "--preview"],
    ["segment", "cts", "--model", model, "-o", "many", "-q"],
    ["evaluate", "out.nii.gz", "out.nii.gz", "--json", "scores.json"],
    ["sample", "--phantom", "-o", "phantom.nii.gz"],
    ["info"], ["engines", "list"], ["engines", "verify"], ["--version"],
]
if importlib.util.find_spec("tensorrt_rtx"):
    build = ["build", "--model", model, "--runtime", "tensorrt-rtx", "--target", "sm_86", "--precision", "fp32"]
    commands += [[*build, "-o", "engines"], ["engines", "import", "engines", "--allow-foreign"]]
for command in [*commands, ["engines", "list"], ["engines", "verify"], ["engines", "clear"]]:
    try:
        app(command)
    except SystemExit as end:
        assert end.code in (0, None), (command, end.code)
trtseg.segment("ct.nii.gz", model=model).save("api.nii")
with trtseg.Segmenter(model) as segmenter:
    segmenter.label(trtseg.load("ct.nii.gz").array, spacing=(6, 6))
"""
WRITTEN = {
    "out.nii.gz",
    "out.json",
    "out.png",
    "many",
    "scores.json",
    "phantom.nii.gz",
    "phantom_labels.nii.gz",
}
WRITTEN |= {"api.nii", "engines"}
# In a network of its own every address leads to the loopback, which counts what is sent: by Python or by a library.
ALONE = """
ip link set lo up && ip route add local default dev lo && { ip -6 route add local ::/0 dev lo || true; } || exit 99
sent() { awk '/lo:/ {print "sent", $3}' /proc/net/dev; }
"$@"; code=$?
sent
"$1" -c 'import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))'
sent
exit $code
"""


@pytest.fixture
def place(here, phantom_ct):
    """A home, a folder for temporary files, and a folder to work in, which holds the script and CTs."""
    for folder in ("home", "temp", "watch", "work/cts/a"):
        Path(folder).mkdir(parents=True)
    Path("watch/sitecustomize.py").write_text(WATCH)
    Path("work/script.py").write_text(SCRIPT)
    for name in ("ct.nii.gz", "cts/one.nii.gz", "cts/a/two.nii.gz"):
        shutil.copy(phantom_ct, f"work/{name}")
    return here


def run_script(place, model, method, *before):
    """Run the script, look at what it leaves behind, and return its standard output."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL", "TRTSEG_CACHE")
    }
    path = os.pathsep.join(map(str, (place / "watch", Path(trtseg.__file__).parents[1])))
    environment |= {"HOME": str(place / "home"), "TMPDIR": str(place / "temp"), "PYTHONPATH": path}
    environment |= {"WATCH_LOG": str(place / "log"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*before, sys.executable, "script.py", model, method]
    done = subprocess.run(command, cwd="work", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("once") == 1
    cache = "home/.cache/trtseg"
    assert [p for p in Path("home").rglob("*") if p.is_file() and not p.is_relative_to(cache)] == []
    assert os.listdir("temp") == []
    assert set(os.listdir("work")) - {"script.py", "ct.nii.gz", "cts"} <= WRITTEN
    assert sorted(map(str, Path("work/many").rglob("*.nii.gz"))) == [
        "work/many/a/two_seg.nii.gz",
        "work/many/one_seg.nii.gz",
    ]
    return done.stdout


def test_nobody_is_called_and_nothing_is_left_behind(place, model):
    run_script(place, model, "spawn")
    lines = Path("log").read_text().splitlines()
    own = [f"file {os.path.realpath(place / name)}" for name in ("work", "temp", "home/.cache/trtseg")]
    harmless = (*own, "file /dev/", "file ?", "process ('uname'", "process ('lscpu'")
    assert [line for line in lines if not line.startswith(harmless)] == []
    assert any(line.startswith(own[0]) for line in lines), "the hook has seen the outputs"


def test_not_a_packet_is_sent(place, model):
    """Libraries in C and C++, which the hook of Python does not see, send nothing either."""
    alone = ("unshare", "--user", "--map-root-user", "--net")
    try:
        subprocess.run([*alone, "sh", "-c", ALONE, "sh", "true"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network of its own: {getattr(error, 'stderr', None) or error}")
    lines = run_script(place, model, "forkserver", *alone, "sh", "-c", ALONE, "sh").splitlines()
    before, after = (int(line.split()[1]) for line in lines if line.startswith("sent "))
    assert before == 0
    assert after > 0, "the packet that was sent then has been counted"
