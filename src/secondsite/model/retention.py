"""Retention: which points a policy keeps, as a ladder. Every point for a time, then one an hour, then one a day, then none.

Rules, in prose:

- Ages count back from the newest point (plus an hour), or from now if that is earlier. While no point arrives none grows older: the
  points of a source that died stay until somebody decides, and a clock here that jumps ahead gives nothing up.
- A point older than `retention_hours` is given up, oldest first, and so is what exceeds `retention_points`.
- The hour of a point (of the clock, UTC) is thinned when all of it is older than `keep_all_hours`, its day when all of it is older than
  `keep_hourly_hours`. Thinning by whole hours and days rewrites each change twice, not at every call.
- Of an hour or a day the first application-consistent point stays, or the first point if there is none; in a consistency group the first
  such point that the members share, so that they keep the same ones. The order is the same for both, so the point of a day is also
  the point of its hour, and what was given up once is never wanted again.
- The newest POINTS_MIN points always stay.

What it does not do: it knows no pins and no files; the journal decides when what is given up can go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from secondsite.model.ids import Sequence
from secondsite.model.manifest import Consistency

if TYPE_CHECKING:
    from secondsite.model.policy import Policy

POINTS_MIN: Final = 2
"""The newest points are never given up, whatever the hours say."""
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_IDLE_GRACE: Final = _HOUR


@dataclass(frozen=True, slots=True)
class PointAge:
    """What retention looks at. `shared`: other machines of a consistency group have a point of the same instant."""

    sequence: Sequence
    time: datetime
    consistency: Consistency = Consistency.CRASH
    shared: bool = False


def points_to_keep(points: Seq[PointAge], policy: Policy, now: datetime) -> list[Sequence]:
    """Return the sequences that `policy` keeps, ascending. `points` ascend by sequence.

    What is older than the first of the result may be folded into the base; what lies between may be merged into
    its successors. Empty only if there are no points.
    """
    if not points:
        return []
    now = min(now, points[-1].time + _IDLE_GRACE)
    limit = now - timedelta(hours=policy.retention_hours)
    newest = max(0, len(points) - POINTS_MIN)
    first = 0
    while first < newest and points[first].time < limit:
        first += 1
    # An hour's chosen point decides also when it has expired: what lost to it is not wanted again.
    wanted = _ladder(points, policy, now)
    kept = [
        point.sequence
        for position, point in enumerate(points)
        if position >= newest or (position >= first and (wanted is None or point.sequence in wanted))
    ]
    return kept[-policy.retention_points :]


def ladder_points(policy: Policy) -> int | None:
    """Return how many points the ladder may hold at its fullest, or None if `policy` keeps every point."""
    if policy.keep_all_hours is None:
        return None
    hourly = policy.hourly_until_hours
    every = (policy.keep_all_hours + 1) * 3600 / policy.copy_frequency_s
    hours = hourly - policy.keep_all_hours + 25
    days = (policy.retention_hours - hourly) / 24 + 2
    return math.ceil(every) + math.ceil(hours) + math.ceil(days) + POINTS_MIN


def _ladder(points: Seq[PointAge], policy: Policy, now: datetime) -> set[Sequence] | None:
    """Return the points that their hour or day keeps, or None if all are kept."""
    if policy.keep_all_hours is None:
        return None
    hours_thinned = now - timedelta(hours=policy.keep_all_hours)
    days_thinned = now - timedelta(hours=policy.hourly_until_hours)
    hours = _chosen(points, _HOUR)
    days = _chosen(points, _DAY)
    wanted = set()
    for point in points:
        hour, day = _begin(point.time, _HOUR), _begin(point.time, _DAY)
        if day + _DAY <= days_thinned:
            chosen = days[day]
        elif hour + _HOUR <= hours_thinned:
            chosen = hours[hour]
        else:
            chosen = point.sequence
        if chosen == point.sequence:
            wanted.add(point.sequence)
    return wanted


def _chosen(points: Seq[PointAge], length: timedelta) -> dict[datetime, Sequence]:
    """Return for each hour or day the point that stands for it."""
    best: dict[datetime, PointAge] = {}
    for point in points:
        begin = _begin(point.time, length)
        if begin not in best or _rank(point) < _rank(best[begin]):
            best[begin] = point
    return {begin: point.sequence for begin, point in best.items()}


def _rank(point: PointAge) -> tuple[bool, bool, Sequence]:
    """The least stands for its hour and day."""
    return not point.shared, point.consistency is Consistency.CRASH, point.sequence


def _begin(time: datetime, length: timedelta) -> datetime:
    """Return the begin of the hour or day of the clock in UTC that `time` lies in."""
    begin = time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return begin if length is _HOUR else begin.replace(hour=0)
