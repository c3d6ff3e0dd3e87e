"""`secondsite lab`: two sites on this machine, to learn with and to test with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondsite.cli.output import Json, err, out, print_fields, print_json, reporting

app = typer.Typer(no_args_is_help=True)

Dir = Annotated[Path, typer.Option("--dir", help="The lab's folder.")]


@app.command(epilog="Example: secondsite lab up --dir /tmp/lab --json")
def up(folder: Dir, as_json: Json = False) -> None:
    """Start two sites: two libvirts, a service, a node per site, clouds mapped, a 5-second policy. Can be repeated."""
    with reporting(as_json=as_json):
        from secondsite.lab import sites

        lab = sites.up(folder, lambda text: err.print(text, markup=False))
        if as_json:
            print_json(lab)
            return
        for name, site in lab["sites"].items():
            out.print(f"\n[bold]{name}[/]")
            print_fields({key: site[key] for key in ("libvirt_uri", "storage", "node", "cloud")})
        out.print(f"\nexport SECONDSITE_CONFIG={lab['config']}", markup=False)


@app.command(epilog="Example: secondsite lab show --dir /tmp/lab --json")
def show(folder: Dir, as_json: Json = False) -> None:
    """Print what `lab up` printed."""
    with reporting(as_json=as_json):
        from secondsite.lab import sites

        print_json(sites.describe(folder))


@app.command(epilog="Example: secondsite lab down --dir /tmp/lab --purge")
def down(
    folder: Dir,
    purge: Annotated[bool, typer.Option("--purge", help="Remove the lab's files, too.")] = False,
    as_json: Json = False,
) -> None:
    """End exactly what the lab started. The files stay, so that `lab up` brings it back, unless purged."""
    with reporting(as_json=as_json):
        from secondsite.lab import sites

        ended = sites.down(folder, purge=purge)
        if as_json:
            print_json({"ended": ended, "purged": purge})
        else:
            err.print(f"ended: {', '.join(ended) or 'nothing ran'}", markup=False)
