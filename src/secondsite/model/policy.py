"""Replication policies: what they hold, how they are checked, and which points retention gives up."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from secondsite.errors import InvalidInputError
from secondsite.model.ids import Sequence

COPY_FREQUENCIES_S: Final = (5, 30, 300, 900)
"""30, 300 and 900 s are the field's; 5 s is ours."""
POINTS_MIN: Final = 2
"""The newest points are never given up, whatever the hours say."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A replication policy; it applies to every item of the cloud it is mapped to.

    copy_frequency_s: one of COPY_FREQUENCIES_S.
    retention_hours: points older than this are given up (0.1 to 8760).
    retention_points: at most so many points are kept (POINTS_MIN to 1,000,000).
    compression: whether parts may be compressed on the wire.
    bandwidth_limit: bytes per second that the sender may use, or None.
    rpo_threshold_s: an alert is raised when the newest point is older; it changes nothing else.
    shutdown_timeout_s: how long a planned failover waits for the guest to shut down by itself.
    """

    copy_frequency_s: int = 300
    retention_hours: float = 24.0
    retention_points: int = 2880
    compression: bool = True
    bandwidth_limit: int | None = None
    rpo_threshold_s: int = 900
    shutdown_timeout_s: int = 120

    def __post_init__(self) -> None:
        _check(
            self.copy_frequency_s in COPY_FREQUENCIES_S,
            "copy_frequency_s",
            f"choose one of {COPY_FREQUENCIES_S}",
        )
        _check(0.1 <= self.retention_hours <= 8760, "retention_hours", "choose 0.1 to 8760 hours")
        _check(
            POINTS_MIN <= self.retention_points <= 1_000_000,
            "retention_points",
            f"choose {POINTS_MIN} to 1000000",
        )
        _check(
            self.bandwidth_limit is None or self.bandwidth_limit >= 8192,
            "bandwidth_limit",
            "choose at least 8192 bytes a second, or none",
        )
        _check(self.rpo_threshold_s >= 1, "rpo_threshold_s", "choose at least 1 s")
        _check(1 <= self.shutdown_timeout_s <= 3600, "shutdown_timeout_s", "choose 1 to 3600 s")


def _check(holds: bool, field: str, hint: str) -> None:
    if not holds:
        raise InvalidInputError(f"{field} is out of range", hint=hint, field=field)


@dataclass(frozen=True, slots=True)
class PointAge:
    """What retention looks at."""

    sequence: Sequence
    time: datetime


def oldest_to_keep(points: Seq[PointAge], policy: Policy, now: datetime) -> Sequence | None:
    """Return the sequence of the oldest point that `policy` keeps, or None if there are no points.

    `points` ascend by sequence. Everything older than the result may be folded into the base. At least
    POINTS_MIN points are kept. A clock that jumps forward gives up at most what its jump is worth, and never
    the last POINTS_MIN points.
    """
    if not points:
        return None
    limit = now - timedelta(hours=policy.retention_hours)
    first = max(0, len(points) - policy.retention_points)
    while first < len(points) - POINTS_MIN and points[first].time < limit:
        first += 1
    return points[min(first, max(0, len(points) - POINTS_MIN))].sequence
