"""The shapes of answers about health, figures and notices."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field


class WhereView(BaseModel):
    """One item, node or vault that a health error is about."""

    subject: str = Field(examples=["item"])
    id: str
    name: str
    message: str
    since: datetime


class HealthSummaryView(BaseModel):
    """One rule that holds now, with everything that it holds for. `machines`: how many items."""

    code: str = Field(examples=["cannot-send"])
    category: str = Field(examples=["replication"])
    level: str = Field(examples=["critical"])
    summary: str
    possible_causes: list[str]
    recommended_action: str
    machines: int
    since: datetime
    where: list[WhereView]


class CyclesView(BaseModel):
    """Cycles: `expected` is what the copy frequency asks for while the item was protected, `missed` what of it did not come."""

    expected: int
    done: int
    missed: int
    missed_share: float | None
    failed: int


class AverageView(BaseModel):
    """Average and largest; none without a cycle."""

    average: float | None
    largest: float | None


class SizeView(BaseModel):
    """Bytes."""

    total: int
    average: float | None
    largest: int


class RpoView(BaseModel):
    """The RPO now and over the time looked at. The threshold is an alert, the copy frequency is how often is copied."""

    now_s: float | None
    threshold_s: int
    copy_frequency_s: int
    median_s: float | None
    percentile_95_s: float | None
    largest_s: float | None


class HopsView(BaseModel):
    """What waits where: `source` bytes that are not acknowledged (estimated between cycles), `link` its rate, `target` what is to be folded."""

    source: dict[str, Any] | None
    link: dict[str, Any] | None
    target: dict[str, Any] | None


class StatisticsView(BaseModel):
    """An item's figures. `journal`: bytes, points, free and total bytes of its disk, `runway_s` until that is full."""

    item: str
    since: datetime
    until: datetime
    cycles: CyclesView
    cycle_seconds: AverageView
    bytes_changed: SizeView
    bytes_shipped: SizeView
    rpo: RpoView
    tracking_lost: int
    resyncs: int
    hops: HopsView
    journal: dict[str, Any] | None


class RpoSampleView(BaseModel):
    """The figures of one minute or hour, which began at `time`."""

    time: datetime
    rpo_median_s: float | None
    rpo_largest_s: float | None
    cycles: int
    missed: int
    bytes_changed: int
    bytes_shipped: int
