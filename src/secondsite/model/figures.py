"""What metrics call the figures that nodes count and measure: the key in a report, the metric's name, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "cycles": ("cycles", "Cycles that ended with an acknowledged point."),
    "failed_cycles": ("cycles_failed", "Cycles that failed."),
    "missed_cycles": ("cycles_overrun", "Cycles that were due before the one before them had ended."),
    "bytes_changed": ("changed_bytes", "Bytes of disks that acknowledged points changed."),
    "bytes_shipped": ("shipped_bytes", "Bytes that went over the link."),
    "tracking_lost": ("tracking_lost", "How often change tracking was lost."),
    "resyncs": ("resyncs", "Cycles that compared whole disks."),
}
"""Counters of an item's source."""

JOURNAL: Final[Mapping[str, tuple[str, str]]] = {
    "bytes": ("bytes", "Bytes that an item's journal takes."),
    "points": ("points", "Recovery points in an item's journal."),
    "free": ("free_bytes", "Free bytes of the disk with the journal."),
    "runway_s": (
        "runway_seconds",
        "Until the disk with the journal is full, at its growth of the last hours.",
    ),
}
"""Measures of an item's journal at its target."""
