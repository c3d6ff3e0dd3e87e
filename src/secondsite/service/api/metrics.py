"""`GET /metrics` for Prometheus, with a Reader's token."""

from __future__ import annotations

import threading
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from secondsite.service.api.guard import Ctx, Reader
from secondsite.service.context import Context
from secondsite.service.metrics import ServiceMetrics

router = APIRouter(tags=["health"])
_making: Final = threading.Lock()


@router.get("/metrics", response_class=Response)
def metrics(request: Request, ctx: Ctx, _: Reader) -> Response:
    """The service's figures in Prometheus' text format."""
    return Response(_metrics_of(request.app, ctx).render(), media_type=CONTENT_TYPE_LATEST)


def _metrics_of(app: FastAPI, ctx: Context) -> ServiceMetrics:
    """Return the application's one set of metrics, made when somebody first asks."""
    with _making:
        found = getattr(app.state, "metrics", None)
        if not isinstance(found, ServiceMetrics):
            found = app.state.metrics = ServiceMetrics(ctx)
        return found
