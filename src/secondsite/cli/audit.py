"""`secondsite audit`: who did what, with the outcome; and whether the trail is still what was written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from secondsite.cli.client import connect
from secondsite.cli.output import EXIT_FAILED, Json, err, out, print_json, print_rows, reporting
from secondsite.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True)


@app.command(
    "list", epilog="Example: secondsite audit list --actor anna --outcome refused --since 2026-11-01"
)
def list_lines(
    actor: Annotated[str | None, typer.Option(help="Only what this account, token or node did.")] = None,
    item: Annotated[str | None, typer.Option(help="Only what was done to this item.")] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Only with this outcome: done, refused, failed, succeeded, cancelled.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Only from this day or time (UTC) on.")] = None,
    job: Annotated[str | None, typer.Option(help="Only of this job: its request, and how it ended.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List who did what, newest first."""
    with reporting(as_json=as_json):
        rows = connect().get(
            "/audit", actor=actor, item=item, outcome=outcome, since=_time(since), job=job, limit=limit
        )
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("LINE", lambda row: row["id"]),
                ("TIME", lambda row: row["time"]),
                ("WHO", lambda row: row["actor"]),
                ("ROLE", lambda row: row["role"]),
                ("WHAT", lambda row: f"{row['method']} {row['path']}"),
                ("ITEM", lambda row: row["item"]),
                ("OUTCOME", lambda row: row["outcome"]),
                ("DETAIL", lambda row: row["detail"]),
            ],
            empty="Nothing of this kind was done.",
        )


@app.command(epilog="Example: secondsite audit verify --head 5713:9f2c...")
def verify(
    head: Annotated[
        str | None, typer.Option(help="What an earlier check printed, and you noted elsewhere.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the whole trail and name each line that is changed or missing; exit code 1 if there is one."""
    with reporting(as_json=as_json):
        found = connect().get("/audit/verify", head=head)
        if as_json:
            print_json(found)
        else:
            for flaw in found["flaws"]:
                err.print(f"line {flaw['line']}: {flaw['what']}", markup=False)
            state = "as they were written" if found["ok"] else "not as they were written"
            out.print(f"{found['lines']} lines from {found['first']} on, {state}", markup=False)
            out.print(f"head {found['head']}", markup=False)
        if not found["ok"]:
            raise typer.Exit(EXIT_FAILED)


def _time(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInputError(
            f"not a day or time: {text!r}", hint="such as 2026-11-23 or 2026-11-23T08:00"
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).isoformat()
