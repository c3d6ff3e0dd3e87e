"""`secondsite node key`, `keys`, `revoke-key`: with which nodes enrol."""

from __future__ import annotations

from typing import Annotated

import typer

from secondsite.cli.client import connect
from secondsite.cli.output import Json, err, out, print_json, print_rows, reporting


def key(
    site: Annotated[str, typer.Option(help="The site that the node will belong to.")],
    uses: Annotated[
        int, typer.Option(min=0, help="How many nodes may enrol with it; 0: any number.", show_default=True)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Print a registration key for a node of this site; it is valid for 5 days, and for one node."""
    with reporting(as_json=as_json):
        row = connect().post("/registration-keys", {"site": site, "uses_max": uses or None})
        if as_json:
            print_json(row)
        else:
            out.print(row["key"], markup=False)


def list_keys(as_json: Json = False) -> None:
    """List registration keys, without their secrets."""
    with reporting(as_json=as_json):
        rows = connect().get("/registration-keys")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("ID", lambda row: row["id"]),
                ("SITE", lambda row: row["site"]),
                ("USED", lambda row: f"{row['uses']} of {row['uses_max'] or 'any number'}"),
                ("EXPIRES", lambda row: row["expires"]),
            ],
            empty="There are no registration keys. See: secondsite node key --help",
        )


def revoke_key(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="The key's id: what stands before its first dot.")
    ],
    as_json: Json = False,
) -> None:
    """Revoke a registration key. Nodes that enrolled with it stay."""
    with reporting(as_json=as_json):
        row = connect().delete(f"/registration-keys/{key_id}")
        print_json(row) if as_json else err.print("the key is revoked")
