"""The figures of `benchmarks.compare` as Markdown and as a chart."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import CONTENDERS, Contender
from training.picture import drawn

AGREES = 0.95  # Dice of the liver with trtseg's labels; below, the row says so
#: Goals on the first CT: how many times longer than the fastest trtseg the fastest of these contenders takes.
GOALS = (
    ("a", "PyTorch eager FP32", 6.0),
    ("b", "the best channels-last PyTorch", 2.5),
    ("c", "ONNX Runtime FP32", 4.0),
    ("d", "the best nnU-Net without mirroring", 8.0),
    ("e", "MONAI", 6.0),
)
OVERHEAD_GOAL = 0.12
QUIET = 0.5  # load average of the minute before the start
P50_GOAL_MS = 25.0
MEMORY_GOAL_MB = 400
#: Not what the goals of their groups ask for.
NOT_OF_GOALS = ("nnunet-mirroring", "onnxruntime-int8")
STACK = "stack800"


def markdown(data: dict[str, Any]) -> str:
    """All tables."""
    parts = [_head(data)]
    if len(data["runs"]) > 1:
        parts.append(_summary(data))
    parts += [_table(data, ct) for ct in data["runs"]]
    if data["latency"]:
        parts.append(_latency(data["latency"]))
    if data["runs"]:
        parts.append(_goals(data))
    return "\n\n".join(parts)


def median(row: dict[str, Any]) -> float | None:
    """Median seconds of a contender's runs; None without runs."""
    return statistics.median(row["seconds"]) if row.get("seconds") else None


def fastest(rows: dict[str, Any], names: list[str] | tuple[str, ...]) -> tuple[str, float] | None:
    """The fastest of some contenders."""
    found = [(seconds, name) for name in names if (seconds := median(rows.get(name, {}))) is not None]
    return min(found)[::-1] if found else None  # type: ignore[return-value]


def ours(rows: dict[str, Any]) -> tuple[str, float] | None:
    """The fastest trtseg."""
    return fastest(rows, [c.name for c in CONTENDERS if c.ours])


def _head(data: dict[str, Any]) -> str:
    machine, settings = data["machine"], data["settings"]
    native = ", ".join(name.upper() for name in machine["native"]) or "neither BF16 nor INT8"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(data["versions"].items()))
    return (
        f"{machine['cpu']}, {_threads(settings)}; arithmetic of its own for {native}. "
        f"Model `{settings['model']}`, Python {machine['python']}, {versions}."
    )


def _doubts(ct: dict[str, Any]) -> list[str]:
    """Why the figures of a CT may be unfair."""
    lines = []
    if ct["load"] > QUIET:
        lines.append(
            f"NOT QUIET: the load average was {ct['load']} before the start. Runtimes with OpenMP, as PyTorch and "
            "nnU-Net, lose most by that; the ratios are not fair."
        )
    if ct["sessions"] > 1:
        lines.append(
            f"Measured in {ct['sessions']} sessions: only figures of one session were taken in turns."
        )
    return [part for line in lines for part in (line, "")]


def _threads(settings: dict[str, Any]) -> str:
    return "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"


def _table(data: dict[str, Any], ct: str) -> str:
    rows = data["runs"][ct]
    best = ours(rows)
    lines = [
        f"{ct}, {' x '.join(map(str, data['cts'][ct]['shape']))} voxels:",
        "",
        *_doubts(data["cts"][ct]),
        "| contender | median s | min to max, runs | of the fastest trtseg | start to labels s | peak MB "
        "| Dice liver | Dice tumour |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for contender in CONTENDERS:
        if contender.name not in rows:
            continue
        row, seconds = rows[contender.name], median(rows[contender.name])
        if seconds is None:
            lines.append(f"| {contender.title} | {row.get('error', 'not run yet')} | | | | | | |")
            continue
        runs = row["seconds"]
        times = f"{seconds / best[1]:.2f} times" if best else ""
        lines.append(
            f"| {contender.title} | {seconds:.2f} | {min(runs):.2f} to {max(runs):.2f}, {len(runs)} | {times} "
            f"| {row['start_s']:.1f} | {row['peak_mb']} | {_agreement(contender, row)} |"
        )
    for contender in CONTENDERS:
        floor = data["floor"].get(ct, {}).get(contender.name)
        if floor:
            liver, tumour = floor["slices"]
            lines.append(
                f"| floor: engines alone, {contender.title} | {floor['floor']:.2f} | {floor['passes']} passes | "
                f"liver net on {liver} slices, tumour net on {tumour} | | | | |"
            )
    return "\n".join(lines)


def _agreement(contender: Contender, row: dict[str, Any]) -> str:
    """Two cells: Dice with the labels of trtseg in FP32 without post-processing."""
    if contender.differs:
        return f"{contender.differs} | "
    liver, tumour = row["dice"]["liver"], row["dice"]["tumour"]
    if liver is None:
        return "no liver | "
    flag = "" if liver >= AGREES else " DISAGREES"
    return f"{liver:.4f}{flag} | {'no tumour' if tumour is None else f'{tumour:.3f}'}"


def _summary(data: dict[str, Any]) -> str:
    """Medians on all CTs, side by side."""
    cts = list(data["runs"])
    heads = [f"{ct}, {data['cts'][ct]['shape'][0]} slices" for ct in cts]
    lines = [f"| median s, times the fastest trtseg | {' | '.join(heads)} |", f"|---|{'---|' * len(cts)}"]
    for contender in CONTENDERS:
        cells = []
        for ct in cts:
            seconds, best = median(data["runs"][ct].get(contender.name, {})), ours(data["runs"][ct])
            times = f", {seconds / best[1]:.1f}" if seconds and best else ""
            cells.append("" if seconds is None else f"{seconds:.2f}{times}")
        if any(cells):
            lines.append(f"| {contender.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _latency(latency: dict[str, Any]) -> str:
    titles = {contender.name: contender.title for contender in CONTENDERS}
    lines = ["| one slice through both nets, warm | p50 ms | p99 ms | slices |", "|---|---|---|---|"]
    for name, row in latency.items():
        lines.append(f"| {titles[name]} | {row['p50']:.1f} | {row['p99']:.1f} | {row['slices']} |")
    return "\n".join(lines)


def _goals(data: dict[str, Any]) -> str:
    """The goals on the first CT, each with what was found."""
    ct, rows = next(iter(data["runs"].items()))
    best = ours(rows)
    if best is None:
        return ""
    name, seconds = best
    titles = {contender.name: contender.title for contender in CONTENDERS}
    lines = [f"| goal ({ct}, {titles[name]}) | asked | found | met |", "|---|---|---|---|"]

    def add(goal: str, asked: str, found: str, met: bool) -> None:
        lines.append(f"| {goal} | {asked} | {found} | {'yes' if met else 'no'} |")

    for group, goal, times in GOALS:
        names = [c.name for c in CONTENDERS if c.group == group and c.name not in NOT_OF_GOALS]
        if peer := fastest(rows, names):
            ratio = peer[1] / seconds
            add(
                f"({group}) {goal}",
                f"{times:g} times",
                f"{ratio:.2f} times, {titles[peer[0]]}",
                ratio >= times,
            )
    if floor := data["floor"].get(ct, {}).get(name):
        share = floor["rest"]
        add(
            "everything but the engines",
            f"at most {OVERHEAD_GOAL:.0%}",
            f"{share:.1%}",
            share <= OVERHEAD_GOAL,
        )
    if row := data["latency"].get(name):
        met = row["p50"] <= P50_GOAL_MS and row["p99"] <= 2 * P50_GOAL_MS
        asked, found = (
            f"{a:.{n}f} and {b:.{n}f} ms"
            for a, b, n in ((P50_GOAL_MS, 2 * P50_GOAL_MS, 0), (row["p50"], row["p99"], 1))
        )
        add("one slice, p50 and p99", asked, found, met)
    if long := ours(data["runs"].get(STACK, {})):
        voxels = math.prod(data["cts"][STACK]["shape"])
        extra = data["runs"][STACK][long[0]]["peak_mb"] - 3 * voxels / 1e6  # int16 in, a byte out
        add(
            f"{STACK}: memory beyond CT and labels",
            f"{MEMORY_GOAL_MB} MB",
            f"{extra:.0f} MB",
            extra <= MEMORY_GOAL_MB,
        )
    return "\n".join(lines)


def chart(data: dict[str, Any], png: Path) -> None:
    """Draw the medians of the first CT as bars, with their spread."""
    ct = next(iter(data["runs"]))
    rows = data["runs"][ct]
    shown = [c for c in CONTENDERS if median(rows.get(c.name, {})) is not None]
    shown.sort(key=lambda contender: statistics.median(rows[contender.name]["seconds"]))
    medians = [statistics.median(rows[c.name]["seconds"]) for c in shown]
    spread = [
        [m - min(rows[c.name]["seconds"]) for c, m in zip(shown, medians, strict=True)],
        [max(rows[c.name]["seconds"]) - m for c, m in zip(shown, medians, strict=True)],
    ]
    colours = ["#1f6f8b" if c.ours else "#b8c4cc" for c in shown]
    best = ours(rows)
    texts = [f"{m:.1f} s" + (f", {m / best[1]:.1f}x" if best else "") for m in medians]
    machine, settings = data["machine"], data["settings"]
    slices = data["cts"][ct]["shape"][0]
    with drawn(png, figsize=(8, 0.36 * len(shown) + 1.1)) as axes:
        bars = axes.barh(
            [c.title for c in shown], medians, xerr=spread, color=colours, ecolor="#555555", capsize=2
        )
        axes.bar_label(bars, texts, padding=6, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.22)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(
            f"seconds from file to file, {ct}, {slices} slices\n{_threads(settings)}, {machine['cpu']}"
        )
