"""Which cuts of a consistency group are complete: every machine that was cut has its point in a journal of this node.

Retention asks, so that the members keep the same points. What it does not do: it knows nothing of who is in a group now;
how many machines were cut stands in each point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from secondsite.journal import PointInfo
from secondsite.model.manifest import Consistency


def complete_cuts(mine: Sequence[PointInfo], others: Iterable[Sequence[PointInfo]]) -> dict[str, Consistency]:
    """Return the cuts of `mine` that all other machines have too, each with the least consistency of its points.

    mine: a journal's points; others: those of every other journal here.
    """
    held: dict[str, list[PointInfo]] = defaultdict(list)
    for point in mine:
        if point.group is not None:
            held[point.group].append(point)
    if not held:
        return {}
    for points in others:
        for point in points:
            if point.group in held:
                held[point.group].append(point)
    return {
        cut: _least(points)
        for cut, points in held.items()
        # The time too: a source that lost its memory may have begun to count again.
        if len(points) == points[0].group_members and len({point.time for point in points}) == 1
    }


def _least(points: Sequence[PointInfo]) -> Consistency:
    if any(point.consistency is Consistency.CRASH for point in points):
        return Consistency.CRASH
    return Consistency.APPLICATION
