"""`secondsite item statistics`: an item's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secondsite.cli.client import connect
from secondsite.cli.item import Item
from secondsite.cli.output import Json, human_bytes, out, print_fields, print_json, print_rows, reporting


def statistics(
    item: Item,
    hours: Annotated[int, typer.Option(min=1, max=24, help="How far to look back.")] = 24,
    history: Annotated[
        bool, typer.Option("--history", help="Also the RPO by the hour, of up to thirty days.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show cycles, sizes, times and RPO of the last hours, what waits at each hop, and how long the journal's disk lasts."""
    with reporting(as_json=as_json):
        api = connect()
        row = api.get(f"/items/{item}/statistics", hours=hours)
        past = api.get(f"/items/{item}/rpo-history", step="hour") if history else None
        if as_json:
            print_json(row if past is None else {**row, "history": past})
            return
        print_fields(_fields(row))
        if past is None:
            return
        out.print()
        print_rows(
            past,
            [
                ("HOUR", lambda line: line["time"]),
                ("RPO MEDIAN", lambda line: _seconds(line["rpo_median_s"])),
                ("RPO LARGEST", lambda line: _seconds(line["rpo_largest_s"])),
                ("CYCLES", lambda line: line["cycles"]),
                ("MISSED", lambda line: line["missed"]),
                ("CHANGED", lambda line: human_bytes(line["bytes_changed"])),
                ("SHIPPED", lambda line: human_bytes(line["bytes_shipped"])),
            ],
            empty="No hour is complete yet.",
        )


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    rpo, cycles, hops, journal = row["rpo"], row["cycles"], row["hops"], row["journal"] or {}
    share = "" if cycles["missed_share"] is None else f" ({cycles['missed_share']:.1%})"
    return {
        "since": row["since"],
        "cycles": f"{cycles['done']} done, {cycles['missed']}{share} missed, {cycles['failed']} failed",
        "cycle time": _pair(row["cycle_seconds"], _seconds),
        "changed": f"{human_bytes(row['bytes_changed']['total'])} in all; {_pair(row['bytes_changed'], human_bytes)}",
        "shipped": f"{human_bytes(row['bytes_shipped']['total'])} in all; {_pair(row['bytes_shipped'], human_bytes)}",
        "RPO now": f"{_seconds(rpo['now_s'])} (alert above {rpo['threshold_s']} s, copied every {rpo['copy_frequency_s']} s)",
        "RPO": f"median {_seconds(rpo['median_s'])}, 95 % below {_seconds(rpo['percentile_95_s'])}, "
        f"largest {_seconds(rpo['largest_s'])}",
        "tracking lost": row["tracking_lost"],
        "resynchronizations": row["resyncs"],
        "waits at the source": _waits(hops["source"]),
        "link": None if hops["link"] is None else f"{human_bytes(hops['link'].get('rate'))}/s",
        "waits at the target": _waits(hops["target"]),
        "journal": None
        if not journal
        else f"{human_bytes(journal.get('bytes'))} in {journal.get('points')} points; "
        f"{human_bytes(journal.get('free'))} free of {human_bytes(journal.get('total'))}",
        "journal's disk is full in": _hours(journal.get("runway_s")),
    }


def _pair(figures: Mapping[str, Any], shown: Any) -> str:
    return f"average {shown(figures['average'])}, largest {shown(figures['largest'])}"


def _waits(hop: Mapping[str, Any] | None) -> str | None:
    if hop is None:
        return None
    points = f" in {hop['points']} points" if "points" in hop else ""
    about = "about " if hop.get("estimated") else ""
    eta = "" if hop.get("eta_s") is None else f", done in {_seconds(hop['eta_s'])}"
    return f"{about}{human_bytes(hop.get('bytes'))}{points}{eta}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _hours(value: float | None) -> str:
    return "not in sight" if value is None else f"{value / 3600:.1f} h"
