"""What is wrong now, over the whole vault."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from secondsite.service.api.guard import Ctx, Reader
from secondsite.service.api.health_answers import HealthSummaryView
from secondsite.service.usecases.health import health_errors

router = APIRouter(tags=["health"])


@router.get("/health-errors", response_model=list[HealthSummaryView])
def list_health_errors(ctx: Ctx, _: Reader) -> Any:
    """What is wrong now, by rule: the worst first, then what hits most machines. What was is in the events."""
    return health_errors(ctx)
