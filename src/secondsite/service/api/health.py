"""What is wrong now over the whole vault, the figures of items, and (alerts.py, metrics.py) who is told."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from secondsite.service.api import alerts, metrics
from secondsite.service.api.guard import Ctx, Reader
from secondsite.service.api.health_answers import HealthSummaryView, RpoSampleView, StatisticsView
from secondsite.service.health.vocabulary import Step
from secondsite.service.usecases import statistics
from secondsite.service.usecases.health import health_errors

router = APIRouter(tags=["health"])
router.include_router(alerts.router)
router.include_router(metrics.router)


@router.get("/health-errors", response_model=list[HealthSummaryView])
def list_health_errors(ctx: Ctx, _: Reader) -> Any:
    """What is wrong now, by rule: the worst first, then what hits most machines. What was is in the events."""
    return health_errors(ctx)


@router.get("/items/{item}/statistics", response_model=StatisticsView)
def item_statistics(
    ctx: Ctx,
    _: Reader,
    item: str,
    hours: Annotated[int, Query(ge=1, le=24, description="how far back")] = 24,
) -> Any:
    """An item's cycles, sizes, times and RPO of the last hours, what waits at each hop, and its journal's runway."""
    return statistics.statistics(ctx, item, hours)


@router.get("/items/{item}/rpo-history", response_model=list[RpoSampleView])
def item_rpo_history(
    ctx: Ctx,
    _: Reader,
    item: str,
    step: Annotated[Step, Query(description="minute: for a day; hour: for thirty days")] = Step.HOUR,
) -> Any:
    """An item's RPO over time, oldest first."""
    return statistics.rpo_history(ctx, item, step)
