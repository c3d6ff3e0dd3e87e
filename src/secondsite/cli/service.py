"""`secondsite service`: make a vault, run its service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secondsite.cli.logs import log_to_stderr
from secondsite.cli.node import host_port
from secondsite.cli.output import Json, err, out, print_json, reporting

app = typer.Typer(no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="The service's data folder.")]
Database = Annotated[
    str | None,
    typer.Option(help="A PostgreSQL URL; a SQLite file in the data folder by default.", show_default=False),
]
DEFAULT_DATA = Path("/var/lib/secondsite/service")


@app.command(epilog="Example: secondsite service init --data /var/lib/secondsite/service --vault head-office")
def init(
    vault: Annotated[str, typer.Option(help="The vault's name.")],
    data: Data = DEFAULT_DATA,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Make a vault: its certificate authority, its store, and a first Contributor token, printed this once."""
    with reporting(as_json=as_json):
        from secondsite.service.daemon import init as init_service

        made = init_service(data, vault, database_url=database)
        if as_json:
            print_json(
                {
                    "vault": vault,
                    "token": made.token,
                    "ca": str(made.ca),
                    "ca_fingerprint": made.ca_fingerprint,
                }
            )
        else:
            err.print(f"vault {vault} made; its CA is {made.ca}; the token:", markup=False)
            out.print(made.token, markup=False)


@app.command(
    epilog="Example: secondsite service run --data /var/lib/secondsite/service --listen 0.0.0.0:8443"
)
def run(
    data: Data = DEFAULT_DATA,
    database: Database = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT for people: API and console.")] = "127.0.0.1:8443",
    node_listen: Annotated[str, typer.Option(help="HOST:PORT for nodes.")] = "127.0.0.1:8445",
    name: Annotated[
        list[str] | None, typer.Option(help="A further host name or address for its certificate.")
    ] = None,
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait for the active service of the same PostgreSQL to end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the service until it is told to end (SIGTERM)."""
    with reporting(as_json=as_json):
        from secondsite.service.daemon import Options
        from secondsite.service.daemon import run as run_service

        def ready(where: dict[str, Any]) -> None:
            if as_json:
                print_json(where)
            else:
                err.print(f"the service listens at {where['url']}", markup=False)

        options = Options(
            listen=host_port(listen),
            node_listen=host_port(node_listen),
            database_url=database,
            names=tuple(name or ()),
            standby=standby,
        )
        log_to_stderr()
        run_service(data, options, ready=ready)
