"""The command `secondsite`: nouns, then verbs. `--json` everywhere, exit codes as in output.py.

A noun's module imports what it needs when it is used: `secondsite journal` works with neither service, node nor
network, and a node does not need the service's packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondsite import __version__
from secondsite.cli import journal
from secondsite.cli.client import choose_config

app = typer.Typer(
    name="secondsite",
    help="Open disaster recovery between two of your own sites.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Example: secondsite lab up --dir /tmp/lab && SECONDSITE_CONFIG=/tmp/lab/cli.json secondsite item list",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="File with url, token and ca of the service (cli.json).", show_default=False
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Choose the service to talk to."""
    _ = version
    choose_config(config)


app.add_typer(journal.app, name="journal", help="Points in a journal, with nothing else running.")


def main() -> None:
    """Run the command."""
    app()
