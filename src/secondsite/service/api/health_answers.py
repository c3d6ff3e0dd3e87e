"""The shapes of answers about health, figures and notices."""

from __future__ import annotations

from datetime import datetime

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
