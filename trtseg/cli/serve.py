"""``trtseg serve``: a DICOM node that segments what it receives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtseg.cli import text
from trtseg.cli.exits import errors_as_exit_codes


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="TOML file with settings; options win over it.", parser=text.path
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the node keeps what it has received.", parser=text.path),
    ] = None,
    ae: Annotated[str | None, typer.Option(metavar="TITLE", help="AE title.", show_default="TRTSEG")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen at; any but this machine's own needs --allow.",
            show_default="127.0.0.1",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Port to listen at.", show_default="11112")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AE@ADDRESS", help="Who may call: AE@address, AE@network/bits, AE, *@...; repeatable."
        ),
    ] = None,
    send: Annotated[
        list[str] | None,
        typer.Option(metavar="AE@HOST:PORT", help="Send results there by C-STORE; repeatable."),
    ] = None,
    stow: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Send results there by STOW-RS; repeatable.")
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Write results there; repeatable.", parser=text.path),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(metavar="N", help="Serve /metrics and /health on this port of the machine itself."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help="Model to run.", show_default="default")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda|cuda:N", help="Where to run.", show_default="auto"),
    ] = None,
) -> None:
    """Run a DICOM node that segments CTs.

    It receives CTs, segments them while they arrive, and sends SEG, SR and pictures on. Without --allow only this
    machine itself may call. Limits, TLS, storage commitment and times are set in the file of --config; docs/node.md
    has them. The log goes to stderr, a line of JSON for each event. SIGTERM ends the node; what it has acknowledged
    is in the store, and it goes on with it when it is started again.
    """
    with errors_as_exit_codes():
        from trtseg import models
        from trtseg.engines import resolve_device
        from trtseg.engines.precision import candidates
        from trtseg.node.config import check_installed, load
        from trtseg.node.run import run

        options = {
            "store": store, "ae": ae, "host": host, "port": port, "allow": allow, "send": send, "stow": stow,
            "folder": folder, "http_port": http_port, "model": model, "device": device,
        }  # fmt: skip
        settings = load(config, options)
        check_installed(settings)
        models.find(settings.model)
        candidates(settings.precision, resolve_device(settings.device).partition(":")[0])
        run(settings)
