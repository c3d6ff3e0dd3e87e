"""A group point is never half thinned: under one policy the members keep the same points of what they share."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from secondsite.journal import PointInfo
from secondsite.journal.journal import _age
from secondsite.model.ids import Digest, Epoch, Sequence
from secondsite.model.manifest import Consistency, PointKind
from secondsite.model.policy import Policy
from secondsite.model.retention import points_to_keep
from secondsite.node.target.sharing import complete_cuts

START = datetime(2026, 11, 23, tzinfo=UTC)
LADDER = Policy(
    copy_frequency_s=300, retention_hours=96, retention_points=5000, keep_all_hours=1, keep_hourly_hours=24
)
CRASH, APPLICATION = Consistency.CRASH, Consistency.APPLICATION


def info(sequence: int, minutes: float, cut: int | None, consistency: Consistency = CRASH) -> PointInfo:
    return PointInfo(
        Sequence(sequence),
        Epoch(1),
        START + timedelta(minutes=minutes),
        consistency,
        PointKind.DELTA,
        Digest(f"{sequence:064x}"),
        0,
        0,
        None if cut is None else f"g:{cut}",
        0 if cut is None else 2,
    )


def kept(mine: list[PointInfo], other: list[PointInfo], now: datetime) -> list[PointInfo]:
    """What retention leaves of a member's points."""
    shared = complete_cuts(mine, [other])
    stay = set(points_to_keep([_age(point, shared) for point in mine], LADDER, now))
    return [point for point in mine if point.sequence in stay]


def cuts(points: list[PointInfo]) -> set[str]:
    return {point.group for point in points if point.group is not None}


def test_a_cut_is_complete_if_every_machine_that_was_cut_has_its_point() -> None:
    mine = [info(1, 0, None), info(2, 5, 1, APPLICATION), info(3, 10, 2), info(4, 15, 3)]
    theirs = [info(7, 5, 1), info(8, 15, 3)]
    assert complete_cuts(mine, [theirs]) == {"g:1": CRASH, "g:3": CRASH}
    assert complete_cuts(mine, [[replace(theirs[0], consistency=APPLICATION)]]) == {"g:1": APPLICATION}
    assert complete_cuts(mine, [[info(7, 6, 1)]]) == {}  # another time: another cut
    assert complete_cuts(mine, []) == {}
    assert complete_cuts(mine[:1], [theirs]) == {}


def test_an_hour_keeps_a_cut_that_both_have_although_one_has_a_better_point_of_its_own() -> None:
    mine = [info(1, 5, None, APPLICATION), info(2, 10, 1), info(3, 20, 2), info(4, 1200, 3), info(5, 1205, 4)]
    theirs = [info(1, 20, 2, APPLICATION), info(2, 1200, 3), info(3, 1205, 4)]
    now = START + timedelta(hours=20)
    assert [point.sequence for point in kept(mine, theirs, now)] == [3, 4, 5]
    assert [point.sequence for point in kept(theirs, mine, now)] == [1, 2, 3]


@pytest.mark.parametrize("seed", range(8))
def test_members_keep_the_same_cuts_whatever_each_did_alone(seed: int) -> None:
    dice = random.Random(seed)
    mine: list[PointInfo] = []
    theirs: list[PointInfo] = []
    sequences = [0, 0]
    for cut in range(72 * 4):  # three days, a cut in 15 minutes
        minutes = cut * 15.0
        for side, points in enumerate((mine, theirs)):
            if dice.random() < 0.2:
                sequences[side] += 1
                points.append(info(sequences[side], minutes - 3, None, dice.choice([CRASH, APPLICATION])))
            if dice.random() < 0.9:
                sequences[side] += 1
                points.append(info(sequences[side], minutes, cut, dice.choice([CRASH, APPLICATION])))
    complete = cuts(mine) & cuts(theirs)
    assert complete
    # Each journal is looked after by itself, at its own times, and finds the other as it is by then.
    for hour in range(1, 73):
        now = START + timedelta(hours=hour)
        until = now - timedelta(minutes=1)
        for _ in range(2):
            if dice.random() < 0.7:
                seen = [point for point in mine if point.time <= until]
                gone = set(seen) - set(kept(seen, [p for p in theirs if p.time <= until], now))
                mine = [point for point in mine if point not in gone]
            if dice.random() < 0.7:
                seen = [point for point in theirs if point.time <= until]
                gone = set(seen) - set(kept(seen, [p for p in mine if p.time <= until], now))
                theirs = [point for point in theirs if point not in gone]
    end = START + timedelta(hours=72)
    mine, theirs = kept(mine, theirs, end), kept(theirs, mine, end)
    mine, theirs = kept(mine, theirs, end), kept(theirs, mine, end)
    assert cuts(mine) & complete == cuts(theirs) & complete
    # Every day that had a cut of both still has one.
    days = {point.time.date() for point in mine if point.group in complete}
    assert len(days) == 3
