"""The command line: options in, library calls, text out.

Each command has the module of its name. The modules import what is slow to load in the functions that need it, so that
``--help`` and wrong usage answer at once. The exit codes are listed in `trtseg.cli.exits`.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from trtseg.cli import build, compare, engines, evaluate, info, sample, segment, serve
from trtseg.cli.exits import errors_as_exit_codes
from trtseg.cli.text import NOT_CLINICAL, fail, out
from trtseg.errors import OutputError
from trtseg.terminal import make_log_visible

_TYPER = 0, 16  # versions before break on click 8.2 and newer
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 5  # seconds
_AGAIN = 0.01  # seconds


def main() -> None:
    """Run the command line; the entry point of the package."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr always has it: any path can be printed
    make_log_visible()
    # NumPy's library would start threads, which nothing here needs, and where it may not, it sends SIGINT to itself.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for number in _SIGNALS:
        if (
            signal.getsignal(number) is not signal.SIG_IGN
        ):  # as nohup sets it, or a shell for what runs behind it
            signal.signal(number, _stop)
    if tuple(map(int, typer.__version__.split(".")[:2])) < _TYPER:
        wanted = ".".join(map(str, _TYPER))
        fail(f"typer {typer.__version__} is too old for the command line; pip install 'typer>={wanted}'")
        sys.exit(2)
    # An alarm of `_stop` that is left when the command has ended would end the process by itself, after all else.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    try:
        app()
    except KeyboardInterrupt:  # before the command has begun
        sys.exit(128 + signal.SIGINT)
    except OSError:
        try:
            out("\n")  # fails too if it was the text of --help that could not be written
        except OutputError as error:
            fail(str(error))
            sys.exit(2)
        raise


def _stop(number: int, frame: FrameType | None, patience: float = _PATIENCE) -> None:
    """End the command so that temporary files are removed and threads end, which a signal's own effect does not.

    An exception would be lost in a finaliser, where Python ends it, and in modules of others while they are imported.
    """
    for again in _SIGNALS:  # a second one would stop the cleaning up
        signal.signal(again, signal.SIG_IGN)
    if patience > 0 and _is_importing(frame):
        signal.signal(signal.SIGALRM, lambda _, later: _stop(number, later, patience - _AGAIN))
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        return

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, (KeyboardInterrupt, SystemExit)):
            signal.signal(signal.SIGALRM, lambda _, later: _stop(number, later))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = lost
    # A thread may wait for an input that never comes.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
    signal.alarm(_PATIENCE)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _print_version(wanted: bool) -> None:
    if wanted:
        from trtseg import __version__

        with errors_as_exit_codes():
            out(f"trtseg {__version__}\n")
        raise typer.Exit


def _options_of_all(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Segment the liver and its tumours in CT."""


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich frames errors, and breaks their lines
    epilog=NOT_CLINICAL,
)
app.callback()(_options_of_all)
# The first sentence of each docstring is short enough for the list of commands.
app.command(epilog=NOT_CLINICAL)(segment.segment)
app.command(epilog=NOT_CLINICAL)(evaluate.evaluate)
app.command(epilog=NOT_CLINICAL)(compare.compare)
app.command(epilog=NOT_CLINICAL)(info.info)
app.command(epilog=NOT_CLINICAL)(sample.sample)
app.command(epilog=NOT_CLINICAL)(build.build)
app.command(epilog=NOT_CLINICAL)(serve.serve)

_engines = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, verify, import, delete built engines.",
    epilog=NOT_CLINICAL,
)
_engines.command("list", epilog=NOT_CLINICAL)(engines.list_engines)
_engines.command("verify", epilog=NOT_CLINICAL)(engines.verify)
_engines.command("import", epilog=NOT_CLINICAL)(engines.import_engines)
_engines.command("clear", epilog=NOT_CLINICAL)(engines.clear)
app.add_typer(_engines, name="engines")
