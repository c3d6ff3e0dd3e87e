"""`secondsite demo`: the main job on two sites of this machine, with its claims checked."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from secondsite.cli.output import EXIT_FAILED, Json, err, human_bytes, out, print_json, reporting


def demo(
    folder: Annotated[
        Path | None, typer.Option("--dir", help="An empty or new folder; a temporary one by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Protect a real machine, test it, fail it over and bring it back; exit code 1 if a claim fails.

    With DEMO_JSON=file in the environment the figures are written there, too.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="ssdemo-", dir="/tmp"))
    with reporting(as_json=as_json):
        from secondsite.lab.demo import Demo

        claims = Demo(folder, lambda text: err.print(text, markup=False)).run()
        document: dict[str, Any] = {
            "figures": claims.figures,
            "claims": [{"claim": c, "held": h, "seen": s} for c, h, s in claims.held],
            "failed": claims.failed,
        }
        if target := os.environ.get("DEMO_JSON"):
            Path(target).write_text(json.dumps(document, indent=2) + "\n")
        if as_json:
            print_json(document)
        else:
            _print(document)
    if claims.failed:
        raise typer.Exit(EXIT_FAILED)


def _print(document: dict[str, Any]) -> None:
    figures = Table(box=None, pad_edge=False, header_style="bold")
    figures.add_column("FIGURE")
    figures.add_column("MEASURED", justify="right")
    for name, value in document["figures"].items():
        text = human_bytes(value) if "bytes" in name else str(value)
        figures.add_row(name.replace("_", " "), text)
    out.print()
    out.print(figures)
    out.print()
    for claim in document["claims"]:
        mark = "[green]holds[/]" if claim["held"] else "[bold red]FAILS[/]"
        seen = "" if claim["held"] else f"  ({escape(claim['seen'])})"
        out.print(f"{mark}  {escape(claim['claim'])}{seen}")
