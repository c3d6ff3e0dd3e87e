"""Figures of items by the minute (a day of them) and by the hour (thirty days), and where the counting stands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Final

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


_FIELDS: Final = tuple(field.name for field in fields(Sample))


def add(tx: Transaction, sample: Sample) -> None:
    """Keep a sample; one of the same minute (of a service that ended in it) is added up with it."""
    add_all(tx, [sample])


def add_all(tx: Transaction, new: Sequence[Sample]) -> None:
    """Keep samples, each of another item, minute or hour, by few statements."""
    if not new:
        return
    of_them = sa.and_(
        samples.c.item_id.in_(sorted({sample.item_id for sample in new})),
        samples.c.step.in_(sorted({sample.step.value for sample in new})),
        samples.c.time.in_(sorted({sample.time for sample in new})),
    )
    there = {_key(sample): sample for sample in rows.listed(tx, Sample, sa.select(samples).where(of_them))}
    whole = []
    for sample in new:
        before = there.get(_key(sample))
        if before is not None:
            tx.execute(
                sa.delete(samples).where(
                    samples.c.item_id == sample.item_id,
                    samples.c.step == sample.step.value,
                    samples.c.time == sample.time,
                )
            )
        whole.append(sample if before is None else together([before, sample], sample.step, sample.time))
    tx.execute(
        sa.insert(samples),
        [{name: getattr(sample, name) for name in _FIELDS} | {"step": sample.step.value} for sample in whole],
    )


def _key(sample: Sample) -> tuple[str, Step, datetime]:
    return sample.item_id, sample.step, sample.time


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


def shares(
    tx: Transaction, since: datetime, only: Collection[ItemId] | None = None
) -> dict[str, tuple[float, int]]:
    """Return for each item, or each of `only`, how many cycles were expected and done in the minutes after."""
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
    named = sa.select(items.c.id) if only is None else list(only)
    statement = statement.where(samples.c.item_id.in_(named))
    return {row.item_id: (float(row.asked), int(row.done)) for row in tx.execute(statement)}


def sum_up(tx: Transaction, now: datetime) -> None:
    """Make the hours that are complete and prune what is too old. May run as often as one likes.

    Only the minutes of hours that are missing are read, and of one hour at a time: the minutes of a day of 1,000 items are
    1.5 million rows.
    """
    for begin, missing in unsummed(tx, now):
        add_all(tx, hours_of(tx, begin, missing))
    prune(tx, now)


def prune(tx: Transaction, now: datetime) -> None:
    """Forget what is too old. What is not summed up yet is not that old."""
    for step, kept in KEPT.items():
        known = samples.c.item_id.in_(sa.select(items.c.id))
        old = sa.and_(known, samples.c.step == step.value, samples.c.time < now - kept)
        tx.execute(sa.delete(samples).where(old))


def unsummed(tx: Transaction, now: datetime) -> list[tuple[datetime, list[ItemId]]]:
    """Return the hours that are complete with the items that have minutes of them, but no sample of the hour yet."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    begin = hour - KEPT[Step.MINUTE]
    found = []
    summed, minutes = samples.alias(), samples.alias()
    while begin < hour:
        end = begin + timedelta(hours=1)
        there = sa.exists().where(
            summed.c.item_id == items.c.id, summed.c.step == Step.HOUR.value, summed.c.time == begin
        )
        # Of a young vault, after an outage and of what was disabled long ago there is nothing to sum up.
        counted = sa.exists().where(
            minutes.c.item_id == items.c.id,
            minutes.c.step == Step.MINUTE.value,
            minutes.c.time >= begin,
            minutes.c.time < end,
        )
        missing = [ItemId(row.id) for row in tx.execute(sa.select(items.c.id).where(counted, ~there))]
        if missing:
            found.append((begin, missing))
        begin = end
    return found


def hours_of(tx: Transaction, begin: datetime, missing: Sequence[ItemId]) -> list[Sample]:
    """Return the samples of this hour of those of the items that have minutes of it. To be added once: again, they would be added up."""
    return [together(parts, Step.HOUR, begin) for parts in _minutes_of(tx, begin, missing)]


def _minutes_of(tx: Transaction, begin: datetime, wanted: Sequence[ItemId]) -> Iterator[list[Sample]]:
    for item_id in wanted:
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
    put_meters(tx, [meter])


def put_meters(tx: Transaction, new: Sequence[Meter]) -> None:
    """Note where the counting of several items stands."""
    ids = [meter.item_id for meter in new]
    known = {row.item_id for row in tx.execute(sa.select(meters.c.item_id).where(meters.c.item_id.in_(ids)))}
    changed = [asdict(meter) | {"_item": meter.item_id} for meter in new if meter.item_id in known]
    if changed:
        names: dict[str, object] = {
            name: sa.bindparam(name) for name in changed[0] if name not in {"_item", "item_id"}
        }
        tx.execute(sa.update(meters).where(meters.c.item_id == sa.bindparam("_item")).values(names), changed)
    if added := [asdict(meter) for meter in new if meter.item_id not in known]:
        tx.execute(sa.insert(meters), added)
