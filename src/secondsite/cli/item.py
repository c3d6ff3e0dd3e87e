"""`secondsite item`: what is protected, what could be, and every operation on an item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from secondsite.cli.client import connect
from secondsite.cli.failover import add_to
from secondsite.cli.following import NoWait, finish, progress_text
from secondsite.cli.operating import Item, operate
from secondsite.cli.output import Json, human_bytes, out, print_fields, print_json, print_rows, reporting
from secondsite.errors import InvalidInputError

if TYPE_CHECKING:
    from secondsite.api_client import ApiClient

__all__ = ["Item", "app"]

app = typer.Typer(no_args_is_help=True)

PAGE: Final = 100
"""Items in one answer."""

add_to(app)


@app.command(epilog="Example: secondsite item protectable --cloud primary-cloud")
def protectable(
    cloud: Annotated[str | None, typer.Option(help="Only machines of this cloud.")] = None,
    as_json: Json = False,
) -> None:
    """List machines that could be protected, and what stands in the way."""
    with reporting(as_json=as_json):
        rows = connect().get("/protectable-items", cloud=cloud)
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("NAME", lambda row: row["name"]),
                ("CLOUD", lambda row: row["cloud"]),
                ("NODE", lambda row: row["node"]),
                ("POWER", lambda row: row["power"]),
                ("DISKS", lambda row: [disk["key"] for disk in row["disks"]]),
                ("READY", lambda row: row["ready"]),
                ("PROBLEMS", lambda row: [problem["message"] for problem in row["problems"]]),
            ],
            empty="No machine is left to protect in a cloud's nodes.",
        )


@app.command(epilog="Example: secondsite item protect web-1")
def protect(
    vm: Annotated[str, typer.Argument(help="The machine's name or UUID in its hypervisor.")],
    cloud: Annotated[str | None, typer.Option(help="Its cloud, if the name is not unique.")] = None,
    name: Annotated[str | None, typer.Option(help="The item's name; the machine's by default.")] = None,
    exclude_disk: Annotated[
        list[str] | None, typer.Option(help="A disk to leave out, such as vdb. May be repeated.")
    ] = None,
    start_at: Annotated[
        str | None,
        typer.Option(
            help="When the initial replication begins, such as 2026-11-24T01:00Z; at most 7 days ahead."
        ),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            help="Folder on the target node's host (not on this machine) with an image of each disk (vda.raw, vda.qcow2), "
            "from a medium or an older copy: only what differs is shipped. See: secondsite node export --help"
        ),
    ] = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Protect a machine: initial replication to the mapped cloud, then a cycle every copy frequency."""
    with reporting(as_json=as_json):
        api = connect()
        body: dict[str, Any] = {
            "vm": vm,
            "cloud": cloud,
            "name": name,
            "exclude_disks": exclude_disk or [],
            "start_at": start_at,
            "seed": seed,
        }
        job = api.post("/items", {key: value for key, value in body.items() if value is not None})
        finish(api, job, as_json=as_json, no_wait=no_wait)


def listed(api: ApiClient, *, disabled: bool = False) -> list[dict[str, Any]]:
    """Return all items, asked for in pages: the service answers others in between."""
    rows: list[dict[str, Any]] = []
    while True:
        after = rows[-1]["id"] if rows else None
        some = api.get("/items", disabled=disabled or None, after=after, limit=PAGE)
        rows += some
        if len(some) < PAGE:
            return rows


@app.command("list", epilog="Example: secondsite item list --json")
def list_items(
    disabled: Annotated[bool, typer.Option("--disabled", help="Also items that were disabled.")] = False,
    as_json: Json = False,
) -> None:
    """List protected items with their state, health and RPO."""
    with reporting(as_json=as_json):
        rows = listed(connect(), disabled=disabled)
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("NAME", lambda row: row["name"]),
                ("STATE", _state),
                ("TEST", lambda row: row["test_state"]),
                ("DIRECTION", lambda row: f"{_source(row)} > {_target(row)}"),
                ("HEALTH", lambda row: row["health"]["level"]),
                ("RPO", lambda row: _seconds(row["rpo_s"])),
                ("POINT", lambda row: (row["latest_point"] or {}).get("sequence")),
                ("POLICY", lambda row: row["policy"]),
            ],
            empty="Nothing is protected. See: secondsite item protectable",
        )


@app.command(epilog="Example: secondsite item show web-1")
def show(item: Item, as_json: Json = False) -> None:
    """Show an item: both sides, replication, health, and what may be done now (and if not, why)."""
    with reporting(as_json=as_json):
        row = connect().get(f"/items/{item}")
        if as_json:
            print_json(row)
            return
        report = (row["replication"]["source"] or {}) if row["replication"] else {}
        last = report.get("last_cycle") or {}
        print_fields(
            {
                "name": row["name"],
                "id": row["id"],
                "state": row["state"],
                "under way": _under_way(row),
                "test": row["test_state"],
                "direction": f"{_source(row)} > {_target(row)}",
                "epoch": row["epoch"],
                "runs at": row["active_side"],
                "policy": row["policy"],
                "disks": [f"{key} {human_bytes(_size(disk))}" for key, disk in row["disks"].items()],
                "latest point": (row["latest_point"] or {}).get("sequence"),
                "RPO": f"{_seconds(row['rpo_s'])} (alert above {row['rpo_threshold_s']} s)",
                "replication": report.get("phase"),
                "last cycle": None
                if not last
                else f"{last['seconds']} s, {human_bytes(last['bytes_changed'])} changed, "
                f"{human_bytes(last['bytes_shipped'])} on the wire",
                "health": row["health"]["level"],
                "because": [reason["message"] for reason in row["health"]["reasons"]],
                "told again": [f"{order['node']}: {order['kind']}" for order in row["standing"]],
                "error": (row["error"] or {}).get("message"),
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


@app.command("test-failover", epilog="Example: secondsite item test-failover web-1 --point 42")
def test_failover(
    item: Item,
    point: Annotated[int | None, typer.Option(help="Sequence of the point; the latest by default.")] = None,
    network: Annotated[
        str, typer.Option(help="mapped: the mapped test networks; none: disconnected.")
    ] = "mapped",
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Start "<name>-test" from a recovery point at the other site; replication goes on."""
    operate(item, "test-failover", {"sequence": point, "network": network}, no_wait, as_json)


@app.command("cleanup-test", epilog="Example: secondsite item cleanup-test web-1")
def cleanup_test(item: Item, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Remove what a test failover made."""
    operate(item, "cleanup-test", {}, no_wait, as_json)


@app.command(epilog="Example: secondsite item failover web-1 --planned")
def failover(
    item: Item,
    planned: Annotated[
        bool, typer.Option("--planned", help="Shut the guest down, ship its last changes, start it there.")
    ] = False,
    shutdown_timeout: Annotated[
        int | None, typer.Option(help="Seconds to wait for the guest; the policy's by default.")
    ] = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Fail over to the other site. On a reversed item this is the failback."""
    with reporting(as_json=as_json):
        if not planned:
            raise InvalidInputError(
                "say which failover you mean",
                hint="add --planned; if the machine's own site is gone: secondsite item unplanned-failover",
            )
    operate(item, "planned-failover", {"shutdown_timeout_s": shutdown_timeout}, no_wait, as_json)


@app.command(epilog="Example: secondsite item commit web-1")
def commit(item: Item, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Commit a failover: the running state stays, all recovery points go."""
    operate(item, "commit", {}, no_wait, as_json)


@app.command(epilog="Example: secondsite item reverse web-1")
def reverse(item: Item, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Replicate in the other direction; only what changed since the failover is shipped."""
    operate(item, "reverse", {}, no_wait, as_json)


@app.command(epilog="Example: secondsite item disable web-1 --delete-replica")
def disable(
    item: Item,
    delete_replica: Annotated[
        bool | None,
        typer.Option(
            "--delete-replica/--keep-replica",
            help="Remove the old machine's disks at the other side, too, if there are any; else as the policy says.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on without nodes that do not answer.")] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Stop protecting; the machine that runs is not touched."""
    operate(item, "disable", {"delete_replica": delete_replica, "force": force}, no_wait, as_json)


def _task_progress(row: Any) -> dict[str, Any]:
    return (((row["active_job"] or {}).get("task")) or {}).get("progress") or {}


def _state(row: Any) -> str:
    """The state, with how far the task is that is under way."""
    fraction = _task_progress(row).get("fraction")
    return str(row["state"]) if fraction is None else f"{row['state']} {fraction:.0%}"


def _under_way(row: Any) -> str | None:
    job = row["active_job"]
    if job is None:
        return None
    words = [job["operation"], (job["task"] or {}).get("name"), progress_text(_task_progress(row))]
    return ": ".join(word for word in words if word)


def _source(row: Any) -> str:
    side = "primary" if row["direction"] == "primary-to-recovery" else "recovery"
    return str(row[side]["site"])


def _target(row: Any) -> str:
    side = "recovery" if row["direction"] == "primary-to-recovery" else "primary"
    return str(row[side]["site"])


def _size(disk: Any) -> int | None:
    size = disk.get("size") if isinstance(disk, dict) else disk
    return size if isinstance(size, int) else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
