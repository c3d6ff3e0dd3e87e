"""`secondsite service`: make a vault, run its service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secondsite.cli.account import FromStdin, ask_password
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
    account: Annotated[
        str | None,
        typer.Option(help="Also make an account of this name, a Contributor; its password is asked for."),
    ] = None,
    password_stdin: FromStdin = False,
    as_json: Json = False,
) -> None:
    """Make a vault: its certificate authority, its store, and a first Contributor token, printed this once."""
    with reporting(as_json=as_json):
        from secondsite.service.daemon import init as init_service

        person = None
        if account is not None:
            person = account, ask_password(f"Password of {account}", from_stdin=password_stdin, new=True)
        made = init_service(data, vault, database_url=database, account=person)
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


@app.command(epilog="Example: secondsite service token --data /var/lib/secondsite/service --name rescue")
def token(
    name: Annotated[str, typer.Option(help="The token's name.")],
    role: Annotated[str, typer.Option(help="Contributor, Operator or Reader.")] = "Contributor",
    valid_days: Annotated[float, typer.Option(help="Days until it expires.")] = 1.0,
    data: Data = DEFAULT_DATA,
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Make a token directly in the database, when every other way in is lost; whether the service runs or not.

    Whoever may read the data folder can do this. The audit trail tells it.
    """
    with reporting(as_json=as_json):
        from secondsite.service.offline import make_token

        made = make_token(data, name, role, valid_days, database_url=database)
        if as_json:
            print_json({"name": name, "role": role, "token": made})
        else:
            out.print(made, markup=False)


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
