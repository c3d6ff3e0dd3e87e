"""Recovery points, as the node that keeps the journal reported them. A copy for people: the journal is the truth."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Final

import sqlalchemy as sa

from secondsite.model.ids import ItemId
from secondsite.model.manifest import Consistency
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Point
from secondsite.service.store.tables import points

AT_ONCE: Final = 1000
"""Rows per statement: SQLite takes at most 32766 parameters, and a journal may hold a million points."""


def sequences(tx: Transaction, item_id: ItemId) -> set[int]:
    """Return the sequences of all points of an item."""
    found = tx.execute(sa.select(points.c.sequence).where(points.c.item_id == item_id))
    return {row[0] for row in found}


def digests(
    tx: Transaction, item_id: ItemId, first: int | None = None, last: int | None = None
) -> dict[int, str]:
    """Return the digests of all points of an item, or of those from `first` to `last`, by sequence."""
    wanted = sa.select(points.c.sequence, points.c.digest).where(points.c.item_id == item_id)
    if first is not None:
        wanted = wanted.where(points.c.sequence >= first)
    if last is not None:
        wanted = wanted.where(points.c.sequence <= last)
    found = tx.execute(wanted)
    return {row.sequence: row.digest for row in found.all()}


def digests_of(tx: Transaction, wanted: Mapping[ItemId, Collection[int]]) -> dict[ItemId, dict[int, str]]:
    """Return the digests of those of the wanted points (by item and sequence) that there are."""
    # By items and sequences apart, which SQLite looks up in the key; by pairs it would read the whole table (0.5 s).
    found: dict[ItemId, dict[int, str]] = {}
    sequences = sorted({sequence for some in wanted.values() for sequence in some})
    for first in range(0, len(sequences), AT_ONCE):
        some = sequences[first : first + AT_ONCE]
        statement = sa.select(points.c.item_id, points.c.sequence, points.c.digest).where(
            points.c.item_id.in_(list(wanted)), points.c.sequence.in_(some)
        )
        for row in tx.execute(statement).all():
            if row.sequence in wanted[row.item_id]:
                found.setdefault(row.item_id, {})[row.sequence] = row.digest
    return found


def add(tx: Transaction, new: Sequence[Point]) -> None:
    """Add points."""
    if new:
        names = [field.name for field in fields(Point)]
        tx.execute(sa.insert(points), [{name: getattr(point, name) for name in names} for point in new])


def remove(tx: Transaction, item_id: ItemId, gone: set[int]) -> None:
    """Forget points that the journal gave up."""
    remove_of(tx, {item_id: gone})


def remove_of(tx: Transaction, gone: Mapping[ItemId, Collection[int]]) -> None:
    """Forget points of several items, by their sequences."""
    many = [
        {"_item": item_id, "_sequence": sequence}
        for item_id, sequences in gone.items()
        for sequence in sorted(sequences)
    ]
    if many:
        named = sa.and_(
            points.c.item_id == sa.bindparam("_item"), points.c.sequence == sa.bindparam("_sequence")
        )
        tx.execute(sa.delete(points).where(named), many)


def remove_all(tx: Transaction, item_id: ItemId) -> None:
    """Forget all points of an item."""
    tx.execute(sa.delete(points).where(points.c.item_id == item_id))


def listed(tx: Transaction, item_id: ItemId, limit: int = 10_000) -> list[Point]:
    """Return the points of an item, newest first."""
    return rows.listed(
        tx,
        Point,
        sa.select(points).where(points.c.item_id == item_id).order_by(points.c.sequence.desc()).limit(limit),
    )


def latest_app_consistent(tx: Transaction, item_id: str) -> Point | None:
    """Return the newest point in which the applications were quiet: frozen, or shut down as planned; None if there is none."""
    return rows.find(
        tx,
        Point,
        sa.select(points)
        .where(
            points.c.item_id == item_id,
            points.c.consistency.in_([Consistency.APPLICATION.value, Consistency.PLANNED.value]),
        )
        .order_by(points.c.sequence.desc())
        .limit(1),
    )


def latest(tx: Transaction, item_id: ItemId, kind: str) -> Point | None:
    """Return the newest point of a kind, or None."""
    return rows.find(
        tx,
        Point,
        sa.select(points)
        .where(points.c.item_id == item_id, points.c.kind == kind)
        .order_by(points.c.sequence.desc())
        .limit(1),
    )


def get(tx: Transaction, item_id: ItemId, sequence: int) -> Point:
    """Return one point."""
    return rows.get(
        tx,
        Point,
        sa.select(points).where(points.c.item_id == item_id, points.c.sequence == sequence),
        f"recovery point {sequence} of this item (it may have been given up by retention)",
    )
