"""`secondsite policy`: copy frequency, retention, limits. What a policy's settings mean stands in model/policy.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secondsite.cli.client import connect
from secondsite.cli.output import Json, err, print_fields, print_json, print_rows, reporting
from secondsite.model.schedule import text_of_window, window_from_text

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Its name.")]
Frequency = Annotated[int | None, typer.Option(help="Seconds between cycles: 5, 30, 300 or 900.")]
Hours = Annotated[float | None, typer.Option(help="Points older than this are given up.")]
Points = Annotated[int | None, typer.Option(help="At most so many points are kept.")]
KeepAll = Annotated[
    float | None,
    typer.Option(help="Hours for which every point is kept, then one an hour; 0: until the end."),
]
KeepHourly = Annotated[
    float | None,
    typer.Option(help="Age in hours from which one point a day is kept; 0: one an hour until the end."),
]
AppConsistent = Annotated[
    int | None,
    typer.Option(help="Hours (1 to 12) between points that are taken with the guest frozen; 0: none are."),
]
Compression = Annotated[bool | None, typer.Option(help="Compress on the wire where it pays.")]
Bandwidth = Annotated[int | None, typer.Option(help="Bytes a second for each item; 0 for no limit.")]
Schedule = Annotated[
    list[str] | None,
    typer.Option(
        help='A window with a limit of its own, "mon-fri 08:00-18:00 2MiB"; may be repeated, the first that holds decides. "none": no schedule.'
    ),
]
Zone = Annotated[
    str | None, typer.Option(help='Time zone of the schedule: "Europe/Amsterdam"; UTC by default.')
]
ResyncWindow = Annotated[
    str | None,
    typer.Option(
        help='When a source that lost its tracking compares by itself: "18:30-06:00" (UTC), "always" or "manual".'
    ),
]
DeleteReplica = Annotated[
    bool | None, typer.Option(help="Whether disable deletes the replica unless told otherwise.")
]
Threshold = Annotated[int | None, typer.Option(help="Alert when the newest point is older (seconds).")]
Shutdown = Annotated[int | None, typer.Option(help="Seconds a planned failover waits for the guest.")]


@app.command("list", epilog="Example: secondsite policy list")
def list_policies(as_json: Json = False) -> None:
    """List policies."""
    with reporting(as_json=as_json):
        rows = connect().get("/policies")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("NAME", lambda row: row["name"]),
                ("EVERY", lambda row: f"{row['copy_frequency_s']} s"),
                ("KEEP", _retention),
                ("COMPRESS", lambda row: row["compression"]),
                ("LIMIT", _limit),
                ("RPO ALERT", lambda row: f"{row['rpo_threshold_s']} s"),
            ],
            empty="There is no policy. See: secondsite policy create --help",
        )


@app.command("show", epilog="Example: secondsite policy show every-5-s")
def show_policy(name: Name, as_json: Json = False) -> None:
    """Show all settings of a policy."""
    with reporting(as_json=as_json):
        row = connect().get(f"/policies/{name}")
        if as_json:
            print_json(row)
        else:
            schedule = [text_of_window(window) for window in row["bandwidth_schedule"]]
            print_fields({**row, "bandwidth_schedule": schedule})


@app.command("create", epilog="Example: secondsite policy create every-5-s --copy-frequency-s 5")
def create_policy(
    name: Name,
    copy_frequency_s: Frequency = None,
    retention_hours: Hours = None,
    retention_points: Points = None,
    keep_all_hours: KeepAll = None,
    keep_hourly_hours: KeepHourly = None,
    app_consistent_hours: AppConsistent = None,
    compression: Compression = None,
    bandwidth_limit: Bandwidth = None,
    bandwidth_schedule: Schedule = None,
    bandwidth_zone: Zone = None,
    resync_window: ResyncWindow = None,
    delete_replica_on_disable: DeleteReplica = None,
    rpo_threshold_s: Threshold = None,
    shutdown_timeout_s: Shutdown = None,
    as_json: Json = False,
) -> None:
    """Add a policy; what is left out has the default (300 s, 24 h, 2880 points)."""
    options = locals()
    with reporting(as_json=as_json):
        settings = _given(options)
        row = connect().post("/policies", {"name": name, **settings})
        _done(row, f"policy {name} created", as_json=as_json)


@app.command(
    "change", epilog="Example: secondsite policy change every-5-s --retention-hours 720 --keep-all-hours 24"
)
def change_policy(
    name: Name,
    copy_frequency_s: Frequency = None,
    retention_hours: Hours = None,
    retention_points: Points = None,
    keep_all_hours: KeepAll = None,
    keep_hourly_hours: KeepHourly = None,
    app_consistent_hours: AppConsistent = None,
    compression: Compression = None,
    bandwidth_limit: Bandwidth = None,
    bandwidth_schedule: Schedule = None,
    bandwidth_zone: Zone = None,
    resync_window: ResyncWindow = None,
    delete_replica_on_disable: DeleteReplica = None,
    rpo_threshold_s: Threshold = None,
    shutdown_timeout_s: Shutdown = None,
    as_json: Json = False,
) -> None:
    """Change a policy; its items follow at their next cycle, nothing is restarted."""
    options = locals()
    with reporting(as_json=as_json):
        settings = _given(options)
        row = connect().patch(f"/policies/{name}", settings)
        _done(row, f"policy {name} changed", as_json=as_json)


@app.command("delete", epilog="Example: secondsite policy delete every-5-s")
def delete_policy(name: Name, as_json: Json = False) -> None:
    """Remove a policy that no mapping uses."""
    with reporting(as_json=as_json):
        _done(connect().delete(f"/policies/{name}"), f"policy {name} deleted", as_json=as_json)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    given = {
        key: value for key, value in options.items() if key not in {"name", "as_json"} and value is not None
    }
    windows = given.pop("bandwidth_schedule", None)
    if windows:
        given["bandwidth_schedule"] = (
            [] if windows == ["none"] else [window_from_text(text) for text in windows]
        )
    return given


def _done(row: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        err.print(text, markup=False)


def _limit(row: Mapping[str, Any]) -> Any:
    limit = row["bandwidth_limit"]
    return f"{limit or 'none'}, by schedule" if row["bandwidth_schedule"] else limit


def _retention(row: Mapping[str, Any]) -> str:
    steps = [f"{row['retention_hours']:g} h"]
    if row["keep_all_hours"] is not None:
        steps.append(f"all for {row['keep_all_hours']:g} h")
    if row["keep_hourly_hours"] is not None:
        steps.append(f"hourly to {row['keep_hourly_hours']:g} h")
    return ", ".join([*steps, f"{row['retention_points']} points"])
