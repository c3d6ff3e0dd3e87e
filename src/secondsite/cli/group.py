"""`secondsite group`: items that share points, and operations on all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secondsite.cli.client import connect
from secondsite.cli.following import NoWait, describe, follow
from secondsite.cli.output import (
    EXIT_FAILED,
    Json,
    err,
    out,
    print_fields,
    print_json,
    print_rows,
    reporting,
)

app = typer.Typer(no_args_is_help=True)

Group = Annotated[str, typer.Argument(help="The group's name or id.")]
Number = Annotated[
    int | None,
    typer.Option("--point", min=1, help="Number of the common point; the latest that all have by default."),
]
Items = Annotated[list[str], typer.Argument(help="Names or ids of items, at least two.")]


@app.command("list", epilog="Example: secondsite group list")
def list_groups(as_json: Json = False) -> None:
    """List consistency groups."""
    with reporting(as_json=as_json):
        rows = connect().get("/groups")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("NAME", lambda row: row["name"]),
                ("MEMBERS", lambda row: [member["name"] for member in row["members"]]),
                ("SOURCE", lambda row: row["source_node"]),
                ("POINT", lambda row: (row["latest_point"] or {}).get("number")),
                ("RPO", lambda row: _seconds(row["rpo_s"])),
                ("PAUSE", lambda row: _seconds((row["cuts"] or {}).get("pause_s"))),
            ],
            empty="There is no consistency group. See: secondsite group create --help",
        )


@app.command(epilog="Example: secondsite group show shop")
def show(group: Group, as_json: Json = False) -> None:
    """Show a group: its members, how its cuts fare, and what may be done now (and if not, why)."""
    with reporting(as_json=as_json):
        row = connect().get(f"/groups/{group}")
        if as_json:
            print_json(row)
            return
        _show(row)


@app.command(epilog="Example: secondsite group create shop shop-db shop-web")
def create(
    name: Annotated[str, typer.Argument(help="The group's name.")], items: Items, as_json: Json = False
) -> None:
    """Let items share points: all of them at one instant, with nothing there without its cause."""
    with reporting(as_json=as_json):
        row = connect().post("/groups", {"name": name, "items": items})
        if as_json:
            print_json(row)
        else:
            _show(row)


@app.command(epilog="Example: secondsite group change shop --add shop-cache --remove shop-web")
def change(
    group: Group,
    add: Annotated[list[str] | None, typer.Option(help="An item to put in. May be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="An item to take out. May be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Put items in and take items out; replication goes on as it is."""
    with reporting(as_json=as_json):
        row = connect().patch(f"/groups/{group}", {"add": add or [], "remove": remove or []})
        if as_json:
            print_json(row)
        else:
            _show(row)


@app.command(epilog="Example: secondsite group delete shop")
def delete(group: Group, as_json: Json = False) -> None:
    """End a group; its members' points stay, each for itself."""
    with reporting(as_json=as_json):
        answer = connect().delete(f"/groups/{group}")
        if as_json:
            print_json(answer)
        else:
            err.print("deleted")


@app.command(epilog="Example: secondsite group points shop --limit 20")
def points(
    group: Group,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 100,
    as_json: Json = False,
) -> None:
    """List the points that all members share."""
    with reporting(as_json=as_json):
        rows = connect().get(f"/groups/{group}/points", limit=limit)
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("POINT", lambda row: row["number"]),
                ("TIME", lambda row: row["time"]),
                ("CONSISTENCY", lambda row: row["consistency"]),
                ("OF EACH", lambda row: [f"{name} {number}" for name, number in row["sequences"].items()]),
            ],
            empty="No point is shared by all members (yet).",
        )


# -- operations --------------------------------------------------------------------------------------------


@app.command("test-failover", epilog="Example: secondsite group test-failover shop --point 42")
def test_failover(
    group: Group,
    point: Number = None,
    network: Annotated[
        str, typer.Option(help="mapped: the mapped test networks; none: disconnected.")
    ] = "mapped",
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Start "<name>-test" of every member from one common point; replication goes on."""
    _operate(group, "test-failover", {"number": point, "network": network}, no_wait, as_json)


@app.command("cleanup-test", epilog="Example: secondsite group cleanup-test shop")
def cleanup_test(group: Group, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Remove what a test failover of the group made."""
    _operate(group, "cleanup-test", {}, no_wait, as_json)


@app.command("unplanned-failover", epilog="Example: secondsite group unplanned-failover shop --point 42")
def unplanned_failover(
    group: Group,
    point: Number = None,
    shutdown_source: Annotated[
        str, typer.Option(help="try: shut the guests down first; no: cut their power. If their site answers.")
    ] = "try",
    shutdown_timeout: Annotated[
        int | None, typer.Option(help="Seconds to wait for each guest; the policy's by default.")
    ] = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Start every member at the other site, all from one common point; nothing is needed of their own site."""
    body = {
        "number": point,
        "shutdown_source": shutdown_source,
        "shutdown_timeout_s": shutdown_timeout,
    }
    _operate(group, "unplanned-failover", body, no_wait, as_json)


@app.command("change-point", epilog="Example: secondsite group change-point shop --point 41")
def change_point(group: Group, point: Number = None, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Discard what runs after an unplanned failover and start every member from another common point."""
    _operate(group, "change-point", {"number": point}, no_wait, as_json)


@app.command(epilog="Example: secondsite group commit shop")
def commit(group: Group, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Commit the failover of every member: what runs stays, all recovery points go."""
    _operate(group, "commit", {}, no_wait, as_json)


@app.command(epilog="Example: secondsite group cancel shop")
def cancel(
    group: Group,
    start: Annotated[
        bool, typer.Option("--start", help="Start them at their old place also if they did not run there.")
    ] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Give the failover of every member up before commit; the machines go on at their old place."""
    _operate(group, "cancel", {"start": start}, no_wait, as_json)


def _operate(group: str, operation: str, body: Mapping[str, Any], no_wait: bool, as_json: bool) -> None:
    """Ask for the operation and follow the jobs of all members, one after the other: they run beside each other."""
    with reporting(as_json=as_json):
        api = connect()
        given = {key: value for key, value in body.items() if value is not None}
        begun = api.post(f"/groups/{group}/{operation}", given)
        if not no_wait:
            begun["jobs"] = [follow(api, str(job["id"])) for job in begun["jobs"]]
        if as_json:
            print_json(begun)
        else:
            for job in begun["jobs"]:
                describe(job)
    if any(job["state"] in {"Failed", "Cancelled"} for job in begun["jobs"]):
        raise typer.Exit(EXIT_FAILED)


def _show(row: Mapping[str, Any]) -> None:
    latest, cuts = row["latest_point"] or {}, row["cuts"] or {}
    print_fields(
        {
            "name": row["name"],
            "id": row["id"],
            "members": [f"{member['name']} ({member['state']})" for member in row["members"]],
            "source node": row["source_node"] or "members are at different nodes: nothing is cut together",
            "latest point": latest.get("number"),
            "time": latest.get("time"),
            "RPO": _seconds(row["rpo_s"]),
            "cuts": None
            if not cuts
            else f"{cuts['cuts']} together, {cuts['failed']} failed, {cuts['alone']} not all there",
            "last pause": _seconds(cuts.get("pause_s")),
        }
    )
    out.print()
    print_rows(
        [{"name": name, **allowed} for name, allowed in row["allowed_operations"].items()],
        [
            ("OPERATION", lambda op: op["name"]),
            ("ALLOWED", lambda op: op["allowed"]),
            ("WHY NOT", lambda op: op["reason"]),
            ("INSTEAD", lambda op: op["instead"]),
        ],
        empty="",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
