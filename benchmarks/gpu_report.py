"""What `benchmarks.gpu` reports: the state of each part, one JSON, one table, and whether the goals are met."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOAL_FLOOR, GOAL_EAGER, GOAL_P99_MS = 2.0, 5.0, 1.5


class LeftOutError(Exception):
    """A part cannot run here, which is no failure."""


class Report:
    """What has been found so far, kept in a file after every part: a run that is killed leaves what it had.

    Attributes
    ----------
    data : dict
        All of it, as the JSON has it.
    """

    def __init__(self, path: Path | None, limit: float) -> None:
        self.data: dict[str, Any] = {"parts": {}}
        self._path, self._limit, self._start = path, limit, time.perf_counter()

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a part and time it; what it returns, or None where it failed or was left out."""
        start, result = time.perf_counter(), None
        if start - self._start > self._limit:
            status = f"left out: {self._limit:.0f} s were over"
        else:
            try:
                result, status = work(), "ok"
            except LeftOutError as reason:
                status = f"left out: {reason}"
            except Exception as error:
                traceback.print_exc()
                status = failure(error)
        self.note(name, status, time.perf_counter() - start)
        return result

    def note(self, name: str, status: str, seconds: float = 0.0) -> None:
        """Write down how a part went; what has failed stays failed."""
        part = self.data["parts"].setdefault(name, {"status": "ok", "seconds": 0.0})
        part["seconds"] = round(part["seconds"] + seconds, 3)
        if part["status"] == "ok":
            part["status"] = status
        print(f"{time.perf_counter() - self._start:6.1f} s  {name}: {status}", file=sys.stderr, flush=True)
        self.save()

    def status(self, name: str) -> str:
        """How a part went so far: ``ok``, also before it began, or ``failed: ...`` or ``left out: ...``."""
        return str(self.data["parts"].get(name, {"status": "ok"})["status"])

    def save(self) -> None:
        """Write the JSON."""
        if self._path is not None:
            new = self._path.with_name(self._path.name + ".new")
            new.write_text(json.dumps(self.data, indent=2) + "\n", encoding="utf-8")
            new.replace(self._path)

    @property
    def failed(self) -> bool:
        """Whether any part has."""
        return any(part["status"].startswith("failed") for part in self.data["parts"].values())


def failure(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"failed: {type(error).__name__}: {text}"[:200]


# ---- The table -----------------------------------------------------------------------------------------------------


def table(data: dict[str, Any]) -> str:
    """All that was found, for people: candidates in one table, and the rest below it."""
    sizes = list(data.get("volumes", {}))
    head = ["candidate"]
    for size in sizes:
        head += [f"{size} host, ms", f"x trtseg {size}", f"{size} GPU, ms"]
    head += ["slice p50", "p99", "p99.9", "max", "x trtseg slice", "Dice liver", "tumour"]
    rows = [_row(data, name, sizes) for name in _candidates(data)]
    lines = _markdown([head, *rows])
    lines += [
        "",
        "Volumes: median (shortest). Slices: host to host, one by one, through both nets. x trtseg: medians",
    ]
    lines += [f"of the same rounds. Dice: with the labels of {data.get('reference', 'no candidate')}.", ""]
    if stages := data.get("stages"):
        lines += _markdown(
            [["stage of a chunk", "ms", "shortest", "ms a slice"]]
            + [
                [name, f"{t['median_ms']:.3f}", f"{t['min_ms']:.3f}", f"{t['ms_a_slice']:.4f}"]
                for name, t in stages.items()
            ]
        )
        lines.append("")
    for size, floor in data.get("floor", {}).get("volumes", {}).items():
        lines.append(
            f"Floor {size}: nets {floor['nets_ms']:.2f} ms, to the GPU {floor['to_gpu_ms']:.2f} ms, back "
            f"{floor['from_gpu_ms']:.2f} ms; these overlap, so it is the longest, {floor['host_ms']:.2f} ms "
            f"(one after the other {floor['sum_ms']:.2f} ms). From GPU memory to GPU memory: the nets alone, "
            f"{floor['device_ms']:.2f} ms"
        )
    if cold := data.get("cold_start"):
        lines.append("Cold start: " + ", ".join(f"{name} {s:.2f} s" for name, s in cold.items()))
    for name, part in data["parts"].items():
        if part["status"] != "ok":
            lines.append(f"{name}: {part['status']}")
    return "\n".join(lines)


def _candidates(data: dict[str, Any]) -> list[str]:
    """Names of the rows, each candidate that was measured twice below its first row."""
    measured = {name for volume in data.get("volumes", {}).values() for name in volume["host"]}
    measured |= set(data.get("slice", {}))
    names = []
    for name in data["candidates"]:
        again = f"{name} (again)"
        names += [name, again] if again in measured else [name]
    return names


def _row(data: dict[str, Any], name: str, sizes: list[str]) -> list[str]:
    volumes, one = [data["volumes"][size] for size in sizes], data.get("slice", {}).get(name)
    if one is None and not any(name in volume["host"] for volume in volumes):
        return [name, data["parts"].get(name, {"status": "not measured"})["status"]]
    row = [name]
    for volume in volumes:
        host = volume["host"].get(name)
        row += [_volume(host), _ratio(host), _volume(volume["device"].get(name))]
    row += ["-" if one is None else f"{one[key]:.3f}" for key in ("p50_ms", "p99_ms", "p99.9_ms", "max_ms")]
    row.append(_ratio(one))
    dice = volumes[0]["agreement"].get(name) if volumes else None
    return row + ["-" if dice is None else f"{dice[c]:.4f}" for c in ("liver", "tumour")]


def _volume(times: dict[str, float] | None) -> str:
    return "-" if times is None else f"{times['median_ms']:.2f} ({times['min_ms']:.2f})"


def _ratio(times: dict[str, float] | None) -> str:
    return "-" if times is None or "times_trtseg" not in times else f"{times['times_trtseg']:.2f}"


def _markdown(rows: list[list[str]]) -> list[str]:
    """A table whose columns stand in line; a row with two cells has a text that may be longer than its column."""
    full = [row for row in rows if len(row) == len(rows[0])]
    width = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    width[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        cells = [row[0].ljust(width[0]), *(c.rjust(w) for c, w in zip(row[1:], width[1:], strict=False))]
        lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return lines


# ---- The goals -----------------------------------------------------------------------------------------------------


def goals(data: dict[str, Any], size: str) -> list[dict[str, Any]]:
    """Met, not met, or not measured: the three goals for an H100.

    Parameters
    ----------
    data : dict
        The report.
    size : str
        Of the volume that the first two are about, ``512x512``.
    """
    volume = data.get("volumes", {}).get(size, {"host": {}})
    ours = volume["host"].get("trtseg", {}).get("median_ms")
    floor = data.get("floor", {}).get("volumes", {}).get(size, {}).get("host_ms")
    eager = volume["host"].get("eager-fp16", {}).get("times_trtseg")
    p99 = data.get("slice", {}).get("trtseg", {}).get("p99_ms")
    over = None if ours is None or floor is None else ours / floor
    return [
        _goal(f"host to host within {GOAL_FLOOR:g}x of the floor", over, "x", most=GOAL_FLOOR),
        _goal(f"at least {GOAL_EAGER:g}x faster than PyTorch eager FP16", eager, "x", least=GOAL_EAGER),
        _goal(f"p99 under {GOAL_P99_MS:g} ms for a slice through both nets", p99, "ms", most=GOAL_P99_MS),
    ]


def _goal(
    text: str, value: float | None, unit: str, *, least: float = 0.0, most: float = math.inf
) -> dict[str, Any]:
    status = "not measured" if value is None else "met" if least <= value <= most else "not met"
    return {"goal": text, "status": status, "value": None if value is None else round(value, 4), "unit": unit}


def goal_lines(data: dict[str, Any]) -> list[str]:
    """A line for each goal; they are set for an H100."""
    device = data.get("device", {}).get("name", "?")
    return [
        f"Goal: {g['goal']}: {g['status']}"
        + ("" if g["value"] is None else f" ({g['value']:.3g} {g['unit']} on {device})")
        for g in data["goals"]
    ]
