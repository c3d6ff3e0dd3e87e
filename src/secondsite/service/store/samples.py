"""Figures of items by the minute (a day of them) and by the hour (thirty days), and where the counting stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from secondsite.model.ids import ItemId
from secondsite.service.health.vocabulary import Step
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.health_tables import meters, samples
from secondsite.service.store.tables import items

KEPT: Final[Mapping[Step, timedelta]] = {Step.MINUTE: timedelta(hours=25), Step.HOUR: timedelta(days=30)}
"""An hour more than a day, so that the oldest hour is summed up before its minutes go."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An item's figures of one minute or hour; `time` is its beginning.

    expected: cycles that the copy frequency asks for. timed: cycles whose own figures were heard; `seconds` is the sum
    of theirs. An RPO of None: the item was not in a state that has one.
    """

    item_id: ItemId
    step: Step
    time: datetime
    rpo_median_s: float | None = None
    rpo_largest_s: float | None = None
    expected: float = 0.0
    cycles: int = 0
    failed: int = 0
    bytes_changed: int = 0
    bytes_shipped: int = 0
    tracking_lost: int = 0
    resyncs: int = 0
    timed: int = 0
    seconds: float = 0.0
    seconds_largest: float = 0.0
    changed_largest: int = 0
    shipped_largest: int = 0


@dataclass(frozen=True, slots=True)
class Meter:
    """Where the counting of an item stands: the source's counters and its last cycle that were taken in."""

    item_id: ItemId
    node_id: str
    counters: dict[str, int]
    sequence: int | None
    time: datetime


def add(tx: Transaction, sample: Sample) -> None:
    """Keep a sample; one of the same minute (of a service that ended in it) is added up with it."""
    of_it = sa.and_(
        samples.c.item_id == sample.item_id,
        samples.c.step == sample.step.value,
        samples.c.time == sample.time,
    )
    there = rows.find(tx, Sample, sa.select(samples).where(of_it))
    if there is not None:
        sample = together([there, sample], sample.step, sample.time)
        tx.execute(sa.delete(samples).where(of_it))
    tx.execute(sa.insert(samples).values({**asdict(sample), "step": sample.step.value}))


def together(found: Iterable[Sample], step: Step, time: datetime) -> Sample:
    """Return several samples of one item as one: sums, largest values, the median of the medians."""
    parts = list(found)
    medians = sorted(part.rpo_median_s for part in parts if part.rpo_median_s is not None)
    peaks = [part.rpo_largest_s for part in parts if part.rpo_largest_s is not None]
    return replace(
        parts[0],
        step=step,
        time=time,
        rpo_median_s=medians[len(medians) // 2] if medians else None,
        rpo_largest_s=max(peaks, default=None),
        expected=sum(part.expected for part in parts),
        cycles=sum(part.cycles for part in parts),
        failed=sum(part.failed for part in parts),
        bytes_changed=sum(part.bytes_changed for part in parts),
        bytes_shipped=sum(part.bytes_shipped for part in parts),
        tracking_lost=sum(part.tracking_lost for part in parts),
        resyncs=sum(part.resyncs for part in parts),
        timed=sum(part.timed for part in parts),
        seconds=sum(part.seconds for part in parts),
        seconds_largest=max(part.seconds_largest for part in parts),
        changed_largest=max(part.changed_largest for part in parts),
        shipped_largest=max(part.shipped_largest for part in parts),
    )


def listed(tx: Transaction, item_id: ItemId, step: Step, since: datetime) -> list[Sample]:
    """Return an item's samples that began after, oldest first."""
    return rows.listed(
        tx,
        Sample,
        sa.select(samples)
        .where(samples.c.item_id == item_id, samples.c.step == step.value, samples.c.time > since)
        .order_by(samples.c.time),
    )


def shares(tx: Transaction, since: datetime, item_id: ItemId | None = None) -> dict[str, tuple[float, int]]:
    """Return for each item how many cycles were expected and done in the minutes after."""
    statement = (
        sa.select(
            samples.c.item_id,
            sa.func.sum(samples.c.expected).label("asked"),
            sa.func.sum(samples.c.cycles).label("done"),
        )
        .where(samples.c.step == Step.MINUTE.value, samples.c.time > since)
        .group_by(samples.c.item_id)
    )
    # Naming the items lets the database look into the key, whose first column they are: half a day of 1,000 items is 720,000
    # rows among 1.5 million.
    wanted = samples.c.item_id.in_(sa.select(items.c.id)) if item_id is None else samples.c.item_id == item_id
    statement = statement.where(wanted)
    return {row.item_id: (float(row.asked), int(row.done)) for row in tx.execute(statement)}


def sum_up(tx: Transaction, now: datetime) -> None:
    """Make the hours that are complete and prune what is too old. May run as often as one likes.

    Only the minutes of hours that are missing are read, and of one hour at a time: the minutes of a day of 1,000 items are
    1.5 million rows.
    """
    hour = now.replace(minute=0, second=0, microsecond=0)
    first = hour - KEPT[Step.MINUTE]
    begin = first
    while begin < hour:
        for parts in _unsummed(tx, begin):
            add(tx, together(parts, Step.HOUR, begin))
        begin += timedelta(hours=1)
    for step, kept in KEPT.items():
        known = samples.c.item_id.in_(sa.select(items.c.id))
        old = sa.and_(known, samples.c.step == step.value, samples.c.time < now - kept)
        tx.execute(sa.delete(samples).where(old))


def _unsummed(tx: Transaction, begin: datetime) -> Iterator[list[Sample]]:
    """Yield the minutes of an hour, item by item, of the items that have no sample of that hour yet."""
    summed = samples.alias()
    there = sa.exists().where(
        summed.c.item_id == items.c.id, summed.c.step == Step.HOUR.value, summed.c.time == begin
    )
    missing = [row.id for row in tx.execute(sa.select(items.c.id).where(~there))]
    for item_id in missing:
        minutes = sa.select(samples).where(
            samples.c.item_id == item_id,
            samples.c.step == Step.MINUTE.value,
            samples.c.time >= begin,
            samples.c.time < begin + timedelta(hours=1),
        )
        if parts := rows.listed(tx, Sample, minutes.order_by(samples.c.time)):
            yield parts


def find_meters(tx: Transaction) -> dict[str, Meter]:
    """Return where the counting of every item stands."""
    return {meter.item_id: meter for meter in rows.listed(tx, Meter, sa.select(meters))}


def put_meter(tx: Transaction, meter: Meter) -> None:
    """Note where the counting of an item stands."""
    values: dict[str, Any] = asdict(meter)
    changed = tx.execute(sa.update(meters).where(meters.c.item_id == meter.item_id).values(**values))
    if changed.rowcount == 0:
        tx.execute(sa.insert(meters).values(**values))
