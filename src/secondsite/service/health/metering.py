"""Turns what sources count into figures by the minute, and watches the RPO.

A source reports counters that only grow; what they grew by goes into the minute in which the service sees it, so that what happened while the
service was down is not lost. A counter that is smaller than before (its node lost the last few counts in a crash) starts again
from there. How many cycles there should have been follows from the copy frequency and the time for which the item was protected, not from what
the node says it missed: a node that is dead misses cycles, too.

The RPO is sampled at each look. It lies in the store by the minute, so a restart of the service loses one minute at the most, and never the
RPO of now, which is the age of the newest point. An initial replication is no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from secondsite.model.ids import ItemId
from secondsite.model.item import ItemState
from secondsite.service.health.vocabulary import Step
from secondsite.service.store.records import Item
from secondsite.service.store.samples import Meter, Sample

MEASURED: Final = frozenset(
    {ItemState.PROTECTED, ItemState.PAUSED, ItemState.FAILING_OVER, ItemState.FAILING_OVER_UNPLANNED}
)
"""States in which the age of the newest point is what a disaster now would cost."""
GAP_MAX: Final = timedelta(hours=24)
"""A longer absence of the service is history that nobody can count any more."""
COUNTED: Final = ("cycles", "failed_cycles", "bytes_changed", "bytes_shipped", "tracking_lost", "resyncs")


@dataclass(slots=True)
class _Minute:
    """What is gathered of an item since the minute began."""

    sample: Sample
    rpos: list[float] = field(default_factory=list)

    def closed(self) -> Sample:
        """Return the sample with its RPO figures."""
        if not self.rpos:
            return self.sample
        ordered = sorted(self.rpos)
        return replace(self.sample, rpo_median_s=ordered[len(ordered) // 2], rpo_largest_s=ordered[-1])


class Metering:
    """Gathers; `look` returns what is to be written. `meters`: where an earlier service left off."""

    def __init__(self, meters: Mapping[str, Meter]) -> None:
        self._meters = dict(meters)
        self._minutes: dict[str, _Minute] = {}

    def look(self, listed: Iterable[tuple[Item, int]], now: datetime) -> tuple[list[Sample], list[Meter]]:
        """Take in what the items' sources say now; returns the minutes that are complete, with their meters.

        `listed`: items that are not disabled, with the copy frequency of their policy in seconds.
        """
        samples: list[Sample] = []
        done: list[Meter] = []
        begin = now.replace(second=0, microsecond=0)
        seen = set()
        for item, frequency_s in listed:
            seen.add(item.id)
            current = self._minutes.get(item.id)
            if current is not None and current.sample.time != begin:
                samples.append(current.closed())
                done.append(self._meters[item.id])
                current = None
            if current is None:
                current = self._minutes[item.id] = _Minute(Sample(item.id, Step.MINUTE, begin))
            self._take(current, item, frequency_s, now)
        for gone in self._minutes.keys() - seen:
            del self._minutes[gone]
        return samples, done

    def close(self) -> tuple[list[Sample], list[Meter]]:
        """Return the minutes that are not complete, when the service ends."""
        found = [minute.closed() for minute in self._minutes.values()]
        self._minutes.clear()
        return found, [self._meters[sample.item_id] for sample in found]

    def _take(self, minute: _Minute, item: Item, frequency_s: int, now: datetime) -> None:
        meter = self._meters.get(item.id)
        report = item.source_report or {}
        counters = _counters(report)
        if item.last_point_time is not None and item.state in MEASURED:
            minute.rpos.append(max(0.0, (now - item.last_point_time).total_seconds()))
        sample = minute.sample
        if meter is not None and item.state is ItemState.PROTECTED:
            passed = min(max(timedelta(), now - meter.time), GAP_MAX)
            sample = replace(sample, expected=sample.expected + passed.total_seconds() / frequency_s)
        before = _baseline(meter, item, counters)
        grown = {name: max(0, counters.get(name, 0) - before.get(name, 0)) for name in COUNTED}
        sequence = None if meter is None else meter.sequence
        sample, sequence = _single_cycles(sample, report, sequence, grown)
        minute.sample = replace(
            sample,
            cycles=sample.cycles + grown["cycles"],
            failed=sample.failed + grown["failed_cycles"],
            bytes_changed=sample.bytes_changed + grown["bytes_changed"],
            bytes_shipped=sample.bytes_shipped + grown["bytes_shipped"],
            tracking_lost=sample.tracking_lost + grown["tracking_lost"],
            resyncs=sample.resyncs + grown["resyncs"],
        )
        kept = counters or (dict(meter.counters) if meter is not None else {})
        self._meters[item.id] = Meter(ItemId(item.id), item.source_node_id, kept, sequence, now)


def _counters(report: Mapping[str, Any]) -> dict[str, int]:
    found = report.get("counters")
    if not isinstance(found, dict):
        return {}
    return {name: value for name in COUNTED if isinstance(value := found.get(name), int)}


def _baseline(meter: Meter | None, item: Item, counters: Mapping[str, int]) -> Mapping[str, int]:
    """Return what was taken in before. A node that became the source counts from where it stands now."""
    if meter is None:
        return {}
    return meter.counters if meter.node_id == item.source_node_id else counters


def _single_cycles(
    sample: Sample, report: Mapping[str, Any], last: int | None, grown: dict[str, int]
) -> tuple[Sample, int | None]:
    """Take in the cycles that are told one by one, once each; takes an initial replication out of `grown`."""
    cycles = report.get("cycles")
    for cycle in cycles if isinstance(cycles, list) else []:
        sequence = cycle.get("sequence")
        if not isinstance(sequence, int) or (last is not None and sequence <= last):
            continue
        last = sequence
        changed, shipped = int(cycle.get("bytes_changed") or 0), int(cycle.get("bytes_shipped") or 0)
        if cycle.get("kind") == "initial":
            for name, count in (("cycles", 1), ("bytes_changed", changed), ("bytes_shipped", shipped)):
                grown[name] = max(0, grown[name] - count)
            continue
        seconds = float(cycle.get("seconds") or 0.0)
        sample = replace(
            sample,
            timed=sample.timed + 1,
            seconds=sample.seconds + seconds,
            seconds_largest=max(sample.seconds_largest, seconds),
            changed_largest=max(sample.changed_largest, changed),
            shipped_largest=max(sample.shipped_largest, shipped),
        )
    return sample, last
