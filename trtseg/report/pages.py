"""HTML pages in one file: style and script inside, and a policy that forbids everything else.

The sources lie in ``trtseg/report/web``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from trtseg.notice import NOTICE

_WEB = Path(__file__).with_name("web")


def page(name: str, title: str, parts: Mapping[str, str], scripts: Sequence[str] = ()) -> bytes:
    """Fill ``web/<name>.html`` and set it into the frame that all pages share.

    Parameters
    ----------
    name : str
        Names the body, the script and the style of the page; the style comes after ``common.css``.
    title : str
        Plain text.
    parts : mapping
        What replaces ``$key`` in the body: HTML, escaped already.
    scripts : sequence of str
        Names of scripts that come before that of the page.
    """
    style = _read("common.css") + _read(f"{name}.css")
    script = "".join(_read(f"{part}.js") for part in (*scripts, name))
    filled = {
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "title": html.escape(title),
        "notice": NOTICE.capitalize(),
        "style": style,
        "script": script,
        "body": Template(_read(f"{name}.html")).substitute(parts),
    }
    return Template(_read("page.html")).substitute(filled).encode("utf-8", "replace")


def data(identifier: str, value: Any) -> str:
    """Make an element that holds JSON for the script; it cannot end early whatever the value holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{identifier}">{text}</script>'


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Make a table whose first column heads the rows; cells are HTML, ``headings`` and ``caption`` are text."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return (
        f'<table class="{kind}"><caption>{html.escape(caption)}</caption>{head}<tbody>{body}</tbody></table>'
    )


def warnings(items: Sequence[tuple[str, str]], look_at: str) -> str:
    """List warnings large, each a sentence and a code or nothing, both plain text; or say that there are none."""
    if not items:
        return f'<p class="no-warning">No warnings. Look at the {look_at} all the same.</p>'
    lines = "".join(
        f"<li>{html.escape(text)}{f' <code>{html.escape(code)}</code>' if code else ''}</li>"
        for text, code in items
    )
    heading = f"{len(items)} warning{'s' * (len(items) != 1)}"
    return (
        f'<section class="warnings" aria-labelledby="warned"><h2 id="warned">{heading}</h2>'
        f"<ul>{lines}</ul></section>"
    )


def figures(items: Iterable[tuple[str, str]]) -> str:
    """List numbers with their names, both as plain text."""
    parts = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>" for name, text in items)
    return f'<dl class="figures">{"".join(parts)}</dl>'


def snippet(name: str, summary: str, warnings: Iterable[str], picture: bytes | None) -> str:
    """Say a result in a few lines of HTML for a notebook; the texts are plain, ``picture`` is a PNG file."""
    lines = [f"<p><b>{html.escape(name)}</b>: {html.escape(summary)}. <i>{NOTICE.capitalize()}.</i></p>"]
    lines += [f"<p><b>Warning:</b> {html.escape(text)}</p>" for text in warnings]
    if picture is not None:
        source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        lines.append(
            f'<img style="max-width: 100%" src="{source}" alt="Axial slices with outlines of liver and tumours">'
        )
    return "".join(lines)


def _read(name: str) -> str:
    return (_WEB / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
