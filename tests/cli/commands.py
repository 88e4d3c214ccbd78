"""How the tests of the command line run it: in this process, or in one of its own."""

import contextlib
import functools
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from trtseg.cli import app

TRTSEG = (sys.executable, "-m", "trtseg")
# Root may do anything; without these capabilities it is bound by modes as other users are.
_AS_OTHERS = tuple(f"--{which}=-dac_override,-dac_read_search" for which in ("bounding-set", "inh-caps"))


def run(*arguments):
    """Run a command in this process; the result has ``exit_code``, ``stdout`` and ``stderr``."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def but_warnings(stderr):
    """Leave out the warnings of the result: the phantom and its tiny nets show no whole liver."""
    return "".join(line for line in stderr.splitlines(True) if not line.startswith("warning: "))


def refused(message, *arguments):
    """Segment, expect one line on stderr with ``message`` and exit code 2, and return the line."""
    done = run("segment", *arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line, line
    return line


def run_alone(*arguments, **options):
    """Run a command in a process of its own; the result has ``returncode``, ``stdout`` and ``stderr``."""
    options = {"capture_output": True, "text": True, "check": False, **options}
    return subprocess.run([*TRTSEG, *arguments], **options)


def feed(process, pipe):
    """Open a named pipe for writing once ``process`` reads it; a process that ends before fails the test."""
    while process.poll() is None:
        with contextlib.suppress(OSError):  # nobody reads it yet
            return open(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "wb")
        time.sleep(0.01)
    pytest.fail(f"{pipe} was not read: {(process.stderr.read() or b'').decode()}")


def stderr_on_a_terminal(*arguments):
    """Run a command that must succeed with stderr on a terminal, and return the text that is shown there."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    shown = b""
    with subprocess.Popen([*TRTSEG, *arguments], stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        with contextlib.suppress(OSError):  # raised at the end
            while part := os.read(leader, 1 << 16):  # at once: a terminal that nobody reads stops who writes
                shown += part
    os.close(leader)
    assert process.returncode == 0
    return shown.decode()


def run_without_privileges(*arguments, **options):
    """Run a command in a process for which the modes of files count, also where this one is root's."""
    return subprocess.run(
        [*_no_privileges(), *TRTSEG, *arguments], capture_output=True, text=True, check=False, **options
    )


@functools.cache
def _no_privileges():
    if os.geteuid() != 0:
        return ()
    command = ("setpriv", *_AS_OTHERS)
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"root may look and write anywhere, and setpriv does not help: {error}")
    return command
