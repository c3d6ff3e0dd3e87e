"""`secondsite alert`: who is told what happens, by mail, webhook and the like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secondsite.cli.client import connect
from secondsite.cli.output import EXIT_FAILED, Json, out, print_fields, print_json, print_rows, reporting
from secondsite.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True)


@app.command(epilog="Example: secondsite alert show")
def show(as_json: Json = False) -> None:
    """Show who is told of what, and what became of it. Addresses are not shown."""
    with reporting(as_json=as_json):
        _print(connect().get("/alert-settings"), as_json)


@app.command(
    "set",
    epilog="Example: secondsite alert set --receiver on-call=@/etc/secondsite/on-call.url --severity critical",
)
def set_alerts(
    receiver: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=URL, an address that apprise knows; NAME=@FILE reads it from a file, so that no process list shows it. May be repeated."
        ),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A receiver to forget. May be repeated.")] = None,
    severity: Annotated[
        list[str] | None,
        typer.Option(help="critical, warning or info. May be repeated; replaces what was chosen."),
    ] = None,
    per_minute: Annotated[
        int | None,
        typer.Option(
            help="Messages a minute for each receiver; the last one is a digest of all that is left."
        ),
    ] = None,
    enabled: Annotated[bool | None, typer.Option("--on/--off", help="Whether anything is sent.")] = None,
    as_json: Json = False,
) -> None:
    """Change who is told of what. What is not named stays as it is."""
    with reporting(as_json=as_json):
        api = connect()
        before = api.get("/alert-settings")
        receivers: dict[str, dict[str, Any]] = {
            row["name"]: {"name": row["name"]} for row in before["receivers"]
        }
        for name in remove or []:
            if receivers.pop(name, None) is None:
                raise InvalidInputError(
                    f"there is no receiver {name!r}", hint="list them: secondsite alert show"
                )
        for text in receiver or []:
            name, url = _receiver(text)
            receivers[name] = {"name": name, "url": url}
        first = before["updated"] is None
        body = {
            "enabled": enabled if enabled is not None else (True if first else before["enabled"]),
            "severities": severity or before["severities"] or ["critical"],
            "per_minute": per_minute or before["per_minute"],
            "receivers": list(receivers.values()),
        }
        _print(api.put("/alert-settings", body), as_json)


@app.command(epilog="Example: secondsite alert test")
def test(as_json: Json = False) -> None:
    """Send a test to every receiver; exit code 1 if one has not taken it."""
    with reporting(as_json=as_json):
        rows = connect().post("/alert-settings/test", {})
        if as_json:
            print_json(rows)
        else:
            print_rows(
                rows,
                [
                    ("RECEIVER", lambda row: row["name"]),
                    ("ARRIVED", lambda row: row["delivered"]),
                    ("SECONDS", lambda row: row["seconds"]),
                    ("WHY NOT", lambda row: row["error"]),
                ],
                empty="There is no receiver. See: secondsite alert set --help",
            )
        if not all(row["delivered"] for row in rows):
            raise typer.Exit(EXIT_FAILED)


def _receiver(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not (name and equals and url):
        raise InvalidInputError("a receiver is NAME=URL or NAME=@FILE")
    if not url.startswith("@"):
        return name, url
    try:
        return name, Path(url[1:]).read_text().strip()
    except OSError as error:
        raise InvalidInputError(f"{url[1:]} cannot be read: {error.strerror}") from error


def _print(row: Any, as_json: bool) -> None:
    if as_json:
        print_json(row)
        return
    shown = ("enabled", "severities", "per_minute", "updated")
    print_fields({name: row[name] for name in shown})
    out.print()
    print_rows(
        row["receivers"],
        [
            ("RECEIVER", lambda one: one["name"]),
            ("KIND", lambda one: one["kind"]),
            ("SENT", lambda one: one["sent"]),
            ("WAITING", lambda one: one["pending"]),
            ("FAILED", lambda one: one["failed"]),
            ("LAST ERROR", lambda one: one["last_error"]),
        ],
        empty="There is no receiver.",
    )
