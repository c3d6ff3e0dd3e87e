"""`secondsite account`, `login`, `logout`: people and their way in.

A password is asked for at the terminal, twice where it is new, or read as one line from standard input (`--password-stdin`); it is never an argument,
where other users of the machine could see it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from secondsite.cli.client import connect, connect_without_token, forget_token, keep_settings
from secondsite.cli.output import Json, err, print_json, print_rows, reporting
from secondsite.errors import InvalidInputError, SecondSiteError

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The account's name.")]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password as a line from standard input.")
]


def login(
    name: Name,
    url: Annotated[
        list[str] | None,
        typer.Option(help="Address of the service; again for each standby. Kept for later commands."),
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="The vault's ca.pem. Kept for later commands.")] = None,
    password_stdin: FromStdin = False,
    as_json: Json = False,
) -> None:
    """Log in: the session's token is kept for later commands, for eight hours."""
    with reporting(as_json=as_json):
        api, settings = connect_without_token([text.rstrip("/") for text in url or ()], ca)
        password = ask_password("Password", from_stdin=password_stdin)
        row = api.post("/login", {"name": name, "password": password})
        path = keep_settings({**settings, "token": row.pop("token")})
        if as_json:
            print_json({**row, "config": str(path)})
        else:
            err.print(f"logged in as {row['name']} ({row['role']}) until {row['expires']}", markup=False)


def logout(as_json: Json = False) -> None:
    """End the session and forget its token."""
    with reporting(as_json=as_json):
        try:
            connect().post("/logout")
        except SecondSiteError as error:
            if error.code != "unauthenticated":  # it has ended already: nothing but the token is left of it
                raise
        forgotten = forget_token()
        print_json({"logged_out": True, "forgotten": forgotten}) if as_json else err.print("logged out")


@app.command("list", epilog="Example: secondsite account list")
def list_accounts(as_json: Json = False) -> None:
    """List accounts."""
    with reporting(as_json=as_json):
        rows = connect().get("/accounts")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("NAME", lambda row: row["name"]),
                ("ROLE", lambda row: row["role"]),
                ("DISABLED", lambda row: row["disabled"]),
                ("LAST LOGIN", lambda row: row["last_login"]),
                ("PASSWORD SINCE", lambda row: row["password_changed"]),
            ],
            empty="There are no accounts; people use tokens. See: secondsite account add --help",
        )


@app.command(epilog="Example: secondsite account add anna --role Operator")
def add(
    name: Name,
    role: Annotated[str, typer.Option(help="Contributor, Operator or Reader.")] = "Reader",
    password_stdin: FromStdin = False,
    as_json: Json = False,
) -> None:
    """Add a person."""
    with reporting(as_json=as_json):
        password = ask_password(f"Password of {name}", from_stdin=password_stdin, new=True)
        row = connect().post("/accounts", {"name": name, "role": role, "password": password})
        print_json(row) if as_json else err.print(f"account {name} added", markup=False)


@app.command(epilog="Example: secondsite account passwd anna")
def passwd(
    name: Annotated[str | None, typer.Argument(help="Whose; one's own by default.")] = None,
    password_stdin: Annotated[
        bool,
        typer.Option(
            "--password-stdin", help="Read it from standard input: for one's own, first the present one."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Set a password: one's own, or as a Contributor somebody else's. The account's other sessions end."""
    with reporting(as_json=as_json):
        if name is None:
            old = ask_password("Present password", from_stdin=password_stdin)
            new = ask_password("New password", from_stdin=password_stdin, new=True)
            connect().post("/password", {"old": old, "new": new})
        else:
            new = ask_password(f"New password of {name}", from_stdin=password_stdin, new=True)
            connect().post(f"/accounts/{name}/password", {"password": new})
        print_json({}) if as_json else err.print("the password is changed")


@app.command(epilog="Example: secondsite account disable anna")
def disable(name: Name, as_json: Json = False) -> None:
    """Disable an account; its sessions end at once."""
    _change(name, {"disabled": True}, f"account {name} disabled", as_json=as_json)


@app.command(epilog="Example: secondsite account enable anna")
def enable(name: Name, as_json: Json = False) -> None:
    """Enable an account again."""
    _change(name, {"disabled": False}, f"account {name} enabled", as_json=as_json)


@app.command("role", epilog="Example: secondsite account role anna Contributor")
def change_role(
    name: Name,
    role: Annotated[str, typer.Argument(help="Contributor, Operator or Reader.")],
    as_json: Json = False,
) -> None:
    """Give an account another role; it counts from its next call on."""
    _change(name, {"role": role}, f"account {name} is {role}", as_json=as_json)


@app.command(epilog="Example: secondsite account remove anna")
def remove(name: Name, as_json: Json = False) -> None:
    """Remove an account. What it did stays in the audit trail."""
    with reporting(as_json=as_json):
        row = connect().delete(f"/accounts/{name}")
        print_json(row) if as_json else err.print(f"account {name} removed", markup=False)


@app.command(epilog="Example: secondsite account sessions")
def sessions(as_json: Json = False) -> None:
    """List open sessions: one's own; all for a Contributor."""
    with reporting(as_json=as_json):
        rows = connect().get("/sessions")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("SESSION", lambda row: row["id"]),
                ("ACCOUNT", lambda row: row["account"]),
                ("FROM", lambda row: row["source"]),
                ("SINCE", lambda row: row["created"]),
                ("UNTIL", lambda row: row["expires"]),
                ("THIS ONE", lambda row: row["current"]),
            ],
            empty="Nobody is logged in.",
        )


@app.command(
    "end-session", epilog="Example: secondsite account end-session 0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f"
)
def end_session(
    session: Annotated[str, typer.Argument(help="The session's id.")], as_json: Json = False
) -> None:
    """End a session at once."""
    with reporting(as_json=as_json):
        row = connect().delete(f"/sessions/{session}")
        print_json(row) if as_json else err.print("the session has ended")


def _change(name: str, body: dict[str, object], text: str, *, as_json: bool) -> None:
    with reporting(as_json=as_json):
        row = connect().patch(f"/accounts/{name}", body)
        print_json(row) if as_json else err.print(text, markup=False)


def ask_password(what: str, *, from_stdin: bool, new: bool = False) -> str:
    """Return a password from the terminal (twice if it is new) or from a line of standard input."""
    if from_stdin:
        line = sys.stdin.readline()
        if not line.strip("\r\n"):
            raise InvalidInputError("no password on standard input")
        return line.rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InvalidInputError("no terminal to ask for a password", hint="use --password-stdin")
    return str(typer.prompt(what, hide_input=True, confirmation_prompt=new, err=True))
