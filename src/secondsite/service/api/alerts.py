"""Alert settings: who is told what happens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from secondsite.service.api.guard import Contributor, Ctx
from secondsite.service.usecases import alerts
from secondsite.service.usecases.alerts import PER_MINUTE, RECEIVERS_MAX, WantedReceiver
from secondsite.service.vocabulary import Severity

router = APIRouter(prefix="/alert-settings", tags=["alerts"])
Url = Annotated[SecretStr, Field(min_length=5, max_length=2000)]


class ReceiverBody(BaseModel):
    """A receiver. `url`: an address of apprise; left out, the stored one stays."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64, examples=["on-call"])
    url: Url | None = Field(
        default=None, examples=["mailtos://user:password@mail.example.com?to=team@example.com"]
    )


class AlertSettingsBody(BaseModel):
    """Which events are told to whom, and how many messages a minute each receiver gets at the most."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    severities: list[Severity] = Field(default=[Severity.CRITICAL], min_length=1, max_length=3)
    per_minute: int = Field(default=PER_MINUTE, ge=1, le=600)
    receivers: list[ReceiverBody] = Field(default_factory=list, max_length=RECEIVERS_MAX)


class ReceiverView(BaseModel):
    """A receiver. Of its address only the scheme is shown."""

    name: str
    kind: str = Field(examples=["mailtos"])
    sent: int
    failed: int
    pending: int
    last_sent: datetime | None
    last_error: str | None


class AlertSettingsView(BaseModel):
    """The settings, with what was sent to each receiver."""

    enabled: bool
    severities: list[Severity]
    per_minute: int
    updated: datetime | None
    receivers: list[ReceiverView]


class TrialView(BaseModel):
    """Whether a test has arrived, and if not, why."""

    name: str
    delivered: bool
    seconds: float
    error: str | None


@router.get("", response_model=AlertSettingsView)
def show_settings(ctx: Ctx, _: Contributor) -> Any:
    """Who is told of what, and what became of it."""
    return alerts.alert_settings(ctx)


@router.put("", response_model=AlertSettingsView)
def put_settings(ctx: Ctx, _: Contributor, body: AlertSettingsBody) -> Any:
    """Replace the settings. Receivers that are not named go; one without `url` keeps the address that is stored."""
    alerts.put_alert_settings(
        ctx,
        enabled=body.enabled,
        severities=body.severities,
        per_minute=body.per_minute,
        receivers=[
            WantedReceiver(each.name, None if each.url is None else each.url.get_secret_value())
            for each in body.receivers
        ],
    )
    return alerts.alert_settings(ctx)


@router.post("/test", response_model=list[TrialView])
def test_settings(ctx: Ctx, _: Contributor) -> Any:
    """Send a test to every receiver, and say within half a minute which of them have taken it."""
    return alerts.test_receivers(ctx)
