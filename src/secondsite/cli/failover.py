"""The commands of the worst day: `secondsite item unplanned-failover`, `change-point`, `cancel`; and pause, resume, resync."""

from __future__ import annotations

from typing import Annotated

import typer

from secondsite.cli.following import NoWait
from secondsite.cli.operating import Item, operate
from secondsite.cli.output import Json, reporting
from secondsite.errors import InvalidInputError

Point = Annotated[
    str | None,
    typer.Option(
        help="Sequence of the point (secondsite point list), or latest, or latest-app-consistent. The latest by default."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to `secondsite item`."""
    app.command("unplanned-failover", epilog="Example: secondsite item unplanned-failover web-1 --point 42")(
        unplanned_failover
    )
    app.command(
        "change-point", epilog="Example: secondsite item change-point web-1 --point latest-app-consistent"
    )(change_point)
    app.command("cancel", epilog="Example: secondsite item cancel web-1")(cancel)
    app.command("pause", epilog="Example: secondsite item pause web-1")(pause)
    app.command("resume", epilog="Example: secondsite item resume web-1")(resume)
    app.command("resync", epilog="Example: secondsite item resync web-1 --json")(resync)


def unplanned_failover(
    item: Item,
    point: Point = None,
    shutdown_source: Annotated[
        str,
        typer.Option(
            help="try: shut the guest down and ship its last changes if its site answers; no: cut its power if it answers."
        ),
    ] = "try",
    shutdown_timeout: Annotated[
        int | None, typer.Option(help="Seconds to wait for the guest; the policy's by default.")
    ] = None,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Start the machine at the other site from what is there; nothing is needed of its own site."""
    body = _chosen(point, as_json=as_json) | {
        "shutdown_source": shutdown_source,
        "shutdown_timeout_s": shutdown_timeout,
    }
    operate(item, "unplanned-failover", body, no_wait, as_json)


def change_point(item: Item, point: Point = None, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Discard what runs after an unplanned failover and start another point; as often as wanted before commit."""
    operate(item, "change-point", _chosen(point, as_json=as_json), no_wait, as_json)


def cancel(
    item: Item,
    start: Annotated[
        bool, typer.Option("--start", help="Start it at its old place also if it did not run there before.")
    ] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Give a failover up before commit: what ran there is discarded, the machine goes on at its old place."""
    operate(item, "cancel", {"start": start}, no_wait, as_json)


def pause(item: Item, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Make no recovery points until resume; changes are tracked on."""
    operate(item, "pause", {}, no_wait, as_json)


def resume(item: Item, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Go on after a pause, with what changed meanwhile."""
    operate(item, "resume", {}, no_wait, as_json)


def resync(item: Item, no_wait: NoWait = False, as_json: Json = False) -> None:
    """Compare whole disks in the next cycle and ship what differs; older points stay valid."""
    operate(item, "resync", {}, no_wait, as_json)


def _chosen(point: str | None, *, as_json: bool) -> dict[str, object]:
    """Return the fields of the request that name the point."""
    if point is None or point in {"latest", "latest-app-consistent"}:
        return {"point": point}
    with reporting(as_json=as_json):
        if not point.isascii() or not point.isdigit() or int(point) < 1:
            raise InvalidInputError(
                f"not a point: {point!r}",
                hint="give its number (secondsite point list), latest or latest-app-consistent",
            )
    return {"sequence": int(point)}
