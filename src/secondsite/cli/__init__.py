"""The command `secondsite`: nouns, then verbs. `--json` everywhere, exit codes as in output.py.

A noun's module imports what it needs when it is used: `secondsite journal` works with neither service, node nor
network, and a node does not need the service's packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondsite import __version__
from secondsite.cli import (
    account,
    audit,
    demo,
    group,
    health,
    history,
    item,
    journal,
    lab,
    node,
    policy,
    service,
    setup,
)
from secondsite.cli.alert import app as alerts
from secondsite.cli.client import choose_config
from secondsite.cli.statistics import statistics

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


for _name, _noun, _help in (
    ("item", item.app, "Protected machines, and every operation on them."),
    ("group", group.app, "Items that share points, and operations on all of them."),
    ("point", history.points, "Recovery points."),
    ("job", history.jobs, "What operations are doing, and did."),
    ("event", history.events, "What happened."),
    ("alert", alerts, "Who is told what happens, by mail, webhook and the like."),
    ("vault", setup.vaults, "The deployment: health, tokens, audit."),
    ("account", account.app, "People: accounts, passwords, sessions."),
    ("audit", audit.app, "Who did what, with the outcome."),
    ("site", setup.sites, "Sites."),
    ("cloud", setup.clouds, "Groups of nodes, and where they replicate to."),
    ("policy", policy.app, "Copy frequency, retention, limits."),
    ("network", setup.networks, "Networks and their mappings."),
    ("node", node.app, "Nodes: list, invite, enrol, run."),
    ("service", service.app, "Make a vault, run its service."),
    ("journal", journal.app, "Points in a journal, with nothing else running."),
    ("lab", lab.app, "Two sites on this machine."),
):
    app.add_typer(_noun, name=_name, help=_help)


app.command(epilog="Example: secondsite demo --dir /tmp/demo")(demo.demo)
app.command(
    epilog="Example: secondsite login anna --url https://dr-1.example:8443 --ca /etc/secondsite/ca.pem"
)(account.login)
app.command(epilog="Example: secondsite logout")(account.logout)
app.command(epilog="Example: secondsite health --verbose")(health.health)
item.app.command(epilog="Example: secondsite item statistics web-1 --hours 6")(statistics)


def main() -> None:
    """Run the command."""
    app()
