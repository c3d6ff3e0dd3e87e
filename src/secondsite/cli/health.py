"""`secondsite health`: what is wrong now, since when, why, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from secondsite.cli.client import connect
from secondsite.cli.output import Json, out, print_json, print_rows, reporting


def health(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also the possible causes, and each machine's own words.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is wrong now: the worst first, then what hits most machines. Exit code 0 whatever is wrong."""
    with reporting(as_json=as_json):
        rows = connect().get("/health-errors")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("LEVEL", lambda row: row["level"]),
                ("WHAT", lambda row: row["summary"]),
                ("WHERE", lambda row: [where["name"] for where in row["where"]]),
                ("SINCE", lambda row: row["since"]),
                ("DO", lambda row: row["recommended_action"]),
            ],
            empty="Nothing is wrong.",
        )
        if not verbose:
            return
        for row in rows:
            out.print()
            print_rows(
                [{"what": row["code"], "cause": cause} for cause in row["possible_causes"]],
                [("CODE", lambda line: line["what"]), ("POSSIBLE CAUSE", lambda line: line["cause"])],
                empty="",
            )
            print_rows(
                row["where"],
                [
                    ("WHERE", lambda where: where["name"]),
                    ("SINCE", lambda where: where["since"]),
                    ("MESSAGE", lambda where: where["message"]),
                ],
                empty="",
            )
