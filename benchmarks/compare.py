"""trtseg beside what people use today: the same nets, the same CTs, file to file, in turns, in one run.

    make peers                                        # once: the peers' environment, .venv/peers
    python -m benchmarks.compare ../shared/data       # table on stdout; compare.json; --png FILE for the chart

Each contender is a process that opens the nets once and labels a CT from file to file, again and again. Its first
labels tell the time from the start of the process. Then the contenders take turns, until each has ``--repeats`` runs
of a CT or has used ``--budget`` seconds. The JSON file is written after every run: whoever is stopped calls the
same command again, and it goes on, also with contenders that failed. docs/performance-peers.md says how the peers are
set up, and why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import compare_cts, compare_table
from benchmarks.compare_process import Process
from benchmarks.peers.contenders import REFERENCE, Contender, chosen
from training.program import parser_of, plain_errors
from training.tables import put_below
from trtseg import __version__, models
from trtseg.engines.processor import native_bf16, native_int8, read_cpuinfo
from trtseg.errors import InputError
from trtseg.io.atomic import atomic
from trtseg.resources import available_cpus

FLOOR_SECONDS = 30.0
LATENCY_SECONDS = 12.0
MARK = "<!-- from here on printed by benchmarks.compare -->\n"


class Comparison:
    """What has been measured, and the file in which it is kept.

    Parameters
    ----------
    args : argparse.Namespace
        The options of `main`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = models.find(args.model).folder
        self.native = {name for name, yes in (("bf16", native_bf16()), ("int8", native_int8())) if yes}
        self.weights = hashlib.sha256((self.model / "model.json").read_bytes()).hexdigest()[:8]
        settings = {
            "model": f"{args.model} {models.find(args.model).spec.version}",
            "weights": self.weights,
            "threads": args.threads,
            "slices": args.slices,
            "cpu": read_cpuinfo()[0],
            "trtseg": __version__,
        }
        self.data: dict[str, Any] = {"settings": settings, "cts": {}, "runs": {}, "floor": {}, "latency": {}}
        if args.json.exists() and not args.fresh:
            self.data = json.loads(args.json.read_text())
            if self.data["settings"] != settings:
                raise InputError(
                    f"{args.json}: holds a run with {self.data['settings']}; expected {settings}: use --fresh, or "
                    "another --json"
                )
        self.data["machine"] = {
            "cpu": settings["cpu"],
            "native": sorted(self.native),
            "python": platform.python_version(),
        }
        self.load = round(os.getloadavg()[0], 1)
        self.data.setdefault("versions", {})

    def keep(self) -> None:
        """Write all figures."""
        with atomic(self.args.json) as (temporary,):
            temporary.write_text(json.dumps(self.data, indent=1) + "\n")

    def row(self, ct: str, contender: Contender) -> dict[str, Any]:
        """The figures of a contender on a CT; ``seconds`` of each run that counts."""
        rows = self.data["runs"].setdefault(ct, {})
        row: dict[str, Any] = rows.setdefault(contender.name, {"seconds": []})
        return row

    def is_done(self, ct: str, row: dict[str, Any]) -> bool:
        """Whether a contender has its runs of a CT."""
        seconds = row["seconds"]
        budget = self.args.budget if ct == self.args.ct[0] else self.args.budget / 2
        enough = len(seconds) >= self.args.repeats or sum(seconds) >= budget
        return "error" in row or (bool(seconds) and enough)

    def open(self, contender: Contender) -> Process:
        """Start a contender."""
        python = Path(sys.executable) if contender.ours else self.args.python
        command = contender.command(python, self.model, self.args.threads)
        return Process(command, self.args.threads, self.args.work / f"{contender.name}.log")

    def measure(self, ct: str, contenders: list[Contender]) -> None:
        """Bring the runs of a CT to their number, the contenders in turns; those that failed before try again."""
        for contender in contenders:
            self.row(ct, contender).pop("error", None)
        path = self.args.work / f"{ct}.nii.gz"
        job = compare_cts.describe(path, self.args.model)
        known = {"load": 0.0, "sessions": 0} | self.data["cts"].get(ct, {})
        if not all(self.is_done(ct, self.row(ct, contender)) for contender in contenders):
            known = {"load": max(known["load"], self.load), "sessions": known["sessions"] + 1}
        self.data["cts"][ct] = job | {name: known[name] for name in ("load", "sessions")}
        reference = self._reference(ct, path, job)
        with ExitStack() as stack:
            running: list[tuple[Contender, Process]] = []
            for contender in contenders:
                if not self.is_done(ct, self.row(ct, contender)):
                    with self._failures(ct, contender):
                        process = self.open(contender)
                        stack.callback(process.close)
                        self._first(ct, contender, process, job, reference)
                        running.append((contender, process))
            while running:
                for contender, process in list(running):
                    row = self.row(ct, contender)
                    with self._failures(ct, contender):
                        answer = process.ask(input=str(path), output=str(self._output(ct, contender)), **job)
                        row["seconds"].append(round(answer["seconds"], 4))
                        row["peak_mb"] = round(process.peak / 1e6)
                        row["stages"] = answer.get("stages", {})
                        note(f"{ct} {contender.name}: {answer['seconds']:.2f} s")
                    if self.is_done(ct, row):
                        running.remove((contender, process))
                    self.keep()

    def _first(
        self, ct: str, contender: Contender, process: Process, job: dict[str, Any], reference: Any
    ) -> None:
        """The run that does not count, but for the time from the start, and the labels."""
        row, target = self.row(ct, contender), self._output(ct, contender)
        answer = process.ask(input=str(self.args.work / f"{ct}.nii.gz"), output=str(target), **job)
        row.setdefault("start_s", round(time.perf_counter() - process.started, 3))
        self.data["versions"] |= process.versions
        if not contender.differs:
            row["dice"] = compare_cts.dice(compare_cts.labels(target), reference)
        note(
            f"{ct} {contender.name}: first labels after {row['start_s']:.1f} s, then {answer['seconds']:.2f} s"
        )
        self.keep()

    @contextmanager
    def _failures(self, ct: str, contender: Contender) -> Iterator[None]:
        """Keep the failure of a contender as its result; the others go on."""
        try:
            yield
        except (RuntimeError, OSError, ValueError) as error:
            self.row(ct, contender)["error"] = str(error)
            note(f"{ct} {contender.name}: {error}")
            self.keep()

    def _output(self, ct: str, contender: Contender) -> Path:
        return Path(self.args.work / f"{ct}_{contender.name}.nii.gz")

    def _reference(self, ct: str, path: Path, job: dict[str, Any]) -> Any:
        """Labels of trtseg in FP32 without post-processing."""
        target = self.args.work / f"{ct}_reference_{self.weights}.nii.gz"
        if not target.exists():
            process = self.open(REFERENCE)
            try:
                process.ask(input=str(path), output=str(target), **job)
            finally:
                process.close()
        return compare_cts.labels(target)

    def engines(self, ct: str, contenders: list[Contender]) -> None:
        """The floor of a CT, and the time of one slice, for each precision of trtseg."""
        for contender in contenders:
            floors, latencies = self.data["floor"].setdefault(ct, {}), self.data["latency"]
            ready = contender.name in floors and contender.name in latencies
            if not contender.ours or ready or "error" in self.row(ct, contender):
                continue
            path = str(self.args.work / f"{ct}.nii.gz")
            with self._failures(ct, contender):
                process = self.open(contender)
                try:
                    floors[contender.name] = process.ask(input=path, output="", floor=FLOOR_SECONDS)
                    if contender.name not in latencies:
                        latencies[contender.name] = process.ask(
                            input=path, output="", latency=LATENCY_SECONDS
                        )
                finally:
                    process.close()
                self.keep()


def note(text: str) -> None:
    """Say on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


@plain_errors()
def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure what is missing, print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("data", type=Path, help="folder with CTs, as benchmarks.robustness says")
    parser.add_argument("--ct", nargs="+", choices=compare_cts.NAMES, default=list(compare_cts.NAMES))
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CONTENDER", help="also those not native here"
    )
    parser.add_argument(
        "--long", action="store_true", help=f"also a stack of {compare_cts.STACK_SLICES} slices"
    )
    parser.add_argument("--slices", type=int, help="that many slices of each CT only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--budget",
        type=float,
        default=24.0,
        help="seconds for a contender on the first CT; half of it on the others",
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--python", type=Path, default=Path(".venv/peers/bin/python"))
    parser.add_argument("--work", type=Path, default=Path("build/compare"), help="CTs, labels and logs")
    parser.add_argument("--json", type=Path, default=Path("compare.json"))
    parser.add_argument("--png", type=Path, help="also draw the chart")
    parser.add_argument("--into", type=Path, metavar="FILE", help="document whose tables are replaced")
    parser.add_argument("--fresh", action="store_true", help="forget earlier figures")
    parser.add_argument(
        "--table", action="store_true", help="measure nothing, print what the JSON file holds"
    )
    args = parser.parse_args(argv)
    if args.slices is not None:
        args.work = args.work / f"slices{args.slices}"

    if not args.table:
        if not args.python.exists():
            raise InputError(f"--python: {args.python} is not there; make it with: make peers")
        args.work.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(args)
        contenders = chosen(args.only, comparison.native)
        names = [*args.ct, *([compare_table.STACK] if args.long else [])]
        compare_cts.prepare(args.data, args.work, names, args.slices)
        for ct in names:
            fits = [c for c in contenders if args.only or not c.first_only or ct == names[0]]
            comparison.measure(ct, fits)
            comparison.engines(ct, fits)
    data = json.loads(args.json.read_text())
    text = compare_table.markdown(data)
    print(text)
    if args.into:
        put_below(MARK, f"\n{text}\n", args.into)
    if args.png:
        compare_table.chart(data, args.png)


if __name__ == "__main__":
    main()
