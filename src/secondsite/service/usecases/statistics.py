"""An item's figures for people: the last hours, the RPO over time, what waits at each hop, and how long the journal's disk lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from secondsite.service.context import Context
from secondsite.service.health.metering import MEASURED
from secondsite.service.health.vocabulary import Step
from secondsite.service.store import clouds, items, samples
from secondsite.service.store.records import Item
from secondsite.service.store.samples import Sample

DAY_H: Final = 24
ESTIMATED_OVER: Final = timedelta(hours=1)
"""How far back the rate of change is looked at that estimates what a source that does not run a cycle has to send."""


def statistics(ctx: Context, item_ref: str, hours: int = DAY_H) -> dict[str, Any]:
    """Return an item's figures of the last `hours` (1 to 24)."""
    with ctx.store.reading() as tx:
        now, item = ctx.clock(), items.get(tx, item_ref)
        since = now - timedelta(hours=hours)
        minutes = samples.listed(tx, item.id, Step.MINUTE, since)
        policy = clouds.policy(tx, clouds.mapping(tx, item.cloud_mapping_id).policy_id).policy
    whole = samples.together(minutes, Step.HOUR, since) if minutes else Sample(item.id, Step.HOUR, since)
    rpo = None
    if item.last_point_time is not None and item.state in MEASURED:
        rpo = max(0.0, (now - item.last_point_time).total_seconds())
    return {
        "item": item.name,
        "since": since,
        "until": now,
        "cycles": _cycles(whole),
        "cycle_seconds": {
            "average": whole.seconds / whole.timed if whole.timed else None,
            "largest": whole.seconds_largest if whole.timed else None,
        },
        "bytes_changed": _sizes(whole.bytes_changed, whole.cycles, whole.changed_largest),
        "bytes_shipped": _sizes(whole.bytes_shipped, whole.cycles, whole.shipped_largest),
        "rpo": {
            "now_s": rpo,
            "threshold_s": policy.rpo_threshold_s,
            "copy_frequency_s": policy.copy_frequency_s,
            "median_s": whole.rpo_median_s,
            "percentile_95_s": _percentile(minutes),
            "largest_s": whole.rpo_largest_s,
        },
        "tracking_lost": whole.tracking_lost,
        "resyncs": whole.resyncs,
        "hops": _hops(item, now, minutes),
        "journal": _mapping(item.target_report, "journal"),
    }


def rpo_history(ctx: Context, item_ref: str, step: Step) -> list[dict[str, Any]]:
    """Return an item's RPO and cycles over time, oldest first: by the minute for a day, by the hour for thirty days."""
    with ctx.store.reading() as tx:
        item = items.get(tx, item_ref)
        found = samples.listed(tx, item.id, step, ctx.clock() - samples.KEPT[step])
    return [
        {
            "time": sample.time,
            "rpo_median_s": sample.rpo_median_s,
            "rpo_largest_s": sample.rpo_largest_s,
            "cycles": sample.cycles,
            "missed": _missed(sample),
            "bytes_changed": sample.bytes_changed,
            "bytes_shipped": sample.bytes_shipped,
        }
        for sample in found
    ]


def _missed(sample: Sample) -> int:
    return max(0, round(sample.expected) - sample.cycles)


def _cycles(whole: Sample) -> dict[str, Any]:
    expected = round(whole.expected)
    return {
        "expected": expected,
        "done": whole.cycles,
        "missed": _missed(whole),
        "missed_share": _missed(whole) / expected if expected else None,
        "failed": whole.failed,
    }


def _sizes(total: int, cycles: int, largest: int) -> dict[str, Any]:
    return {"total": total, "average": total / cycles if cycles else None, "largest": largest}


def _percentile(minutes: Sequence[Sample]) -> float | None:
    """The 95th percentile of the minutes' largest values: what holds in 19 minutes of 20, peaks included."""
    peaks = sorted(sample.rpo_largest_s for sample in minutes if sample.rpo_largest_s is not None)
    return peaks[min(len(peaks) - 1, int(len(peaks) * 0.95))] if peaks else None


def _hops(item: Item, now: datetime, minutes: Sequence[Sample]) -> dict[str, Any]:
    """Return what waits at each hop. Between cycles the source's backlog is an estimate: the rate of change times the lag."""
    told = _mapping(item.source_report, "hops")
    lag = None if item.last_point_time is None else max(0.0, (now - item.last_point_time).total_seconds())
    source = _mapping(told, "source")
    if source is None and lag is not None and (item.source_report or {}).get("role") == "source":
        recent = [sample for sample in minutes if sample.time > now - ESTIMATED_OVER]
        changed = sum(sample.bytes_changed for sample in recent)
        rate = changed / (len(recent) * 60) if recent else 0.0
        source = {"bytes": round(rate * lag), "eta_s": None, "estimated": True}
    elif source is not None:
        source = {**source, "estimated": False}
    return {
        "source": None if source is None else {**source, "lag_s": lag},
        "link": _mapping(told, "link"),
        "target": _mapping(_mapping(item.target_report, "journal"), "to_fold"),
    }


def _mapping(report: Mapping[str, Any] | None, key: str) -> dict[str, Any] | None:
    found = (report or {}).get(key)
    return dict(found) if isinstance(found, dict) else None
