"""Replication policies: what they hold and how they are checked. What follows from them: retention.py, schedule.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from secondsite.errors import InvalidInputError
from secondsite.model.retention import POINTS_MIN, ladder_points
from secondsite.model.schedule import (
    LIMIT_MIN,
    RESYNC_WINDOW,
    BandwidthWindow,
    checked_resync_window,
    checked_windows,
)

COPY_FREQUENCIES_S: Final = (5, 30, 300, 900)
"""30, 300 and 900 s are the field's; 5 s is ours."""

_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+/-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Policy:
    """A replication policy; it applies to every item of the cloud it is mapped to.

    copy_frequency_s: one of COPY_FREQUENCIES_S.
    retention_hours: points older than this are given up (0.1 to 8760).
    retention_points: at most so many points are kept (POINTS_MIN to 1,000,000).
    keep_all_hours: points younger than this are all kept, older ones one an hour; None: every point until the end.
    keep_hourly_hours: points older than this are kept one a day; None: one an hour until the end. See retention.py.
    bandwidth_schedule: windows of the week with limits of their own; outside of them `bandwidth_limit` holds. See schedule.py.
    bandwidth_zone: the time zone of the schedule's times ("Europe/Amsterdam"), or "UTC".
    resync_window: when a source that lost its tracking compares by itself: "HH:MM-HH:MM" (UTC), "always", or "manual".
    delete_replica_on_disable: whether disable also deletes the disks of the side that does not run, unless told otherwise.
    app_consistent_hours: every so many hours (1 to 12) a point is taken with the guest's file systems frozen; None: never.
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
    keep_all_hours: float | None = None
    keep_hourly_hours: float | None = None
    app_consistent_hours: int | None = None
    bandwidth_schedule: tuple[BandwidthWindow, ...] = ()
    bandwidth_zone: str = "UTC"
    resync_window: str = RESYNC_WINDOW
    delete_replica_on_disable: bool = False

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
            self.bandwidth_limit is None or self.bandwidth_limit >= LIMIT_MIN,
            "bandwidth_limit",
            f"choose at least {LIMIT_MIN} bytes a second, or none",
        )
        _check(self.rpo_threshold_s >= 1, "rpo_threshold_s", "choose at least 1 s")
        _check(1 <= self.shutdown_timeout_s <= 3600, "shutdown_timeout_s", "choose 1 to 3600 s")
        _check(
            self.app_consistent_hours is None or 1 <= self.app_consistent_hours <= 12,
            "app_consistent_hours",
            "choose 1 to 12 hours, or none",
        )
        self._check_ladder()
        # Plain lists from JSON become what the field's type says.
        object.__setattr__(self, "bandwidth_schedule", checked_windows(self.bandwidth_schedule))
        _check(
            _ZONE.fullmatch(self.bandwidth_zone) is not None,
            "bandwidth_zone",
            'choose the name of a time zone: "UTC", "Europe/Amsterdam"',
        )
        checked_resync_window(self.resync_window)

    @property
    def hourly_until_hours(self) -> float:
        """From which age on points are kept one a day."""
        return self.retention_hours if self.keep_hourly_hours is None else self.keep_hourly_hours

    def _check_ladder(self) -> None:
        if self.keep_all_hours is None:
            _check(
                self.keep_hourly_hours is None,
                "keep_hourly_hours",
                "say first for how long every point is kept: keep_all_hours",
            )
            return
        _check(
            0.1 <= self.keep_all_hours <= self.retention_hours,
            "keep_all_hours",
            f"choose 0.1 to {self.retention_hours:g} hours (retention_hours)",
        )
        _check(
            self.keep_all_hours <= self.hourly_until_hours <= self.retention_hours,
            "keep_hourly_hours",
            f"choose {self.keep_all_hours:g} (keep_all_hours) to {self.retention_hours:g} hours (retention_hours)",
        )
        most = ladder_points(self)
        _check(
            most is None or most <= self.retention_points,
            "retention_points",
            f"these hours hold up to {most} points at {self.copy_frequency_s} s: allow so many, or keep less",
        )


def _check(holds: bool, field: str, hint: str) -> None:
    if not holds:
        raise InvalidInputError(f"{field} is out of range", hint=hint, field=field)
