"""Health's own words. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Level(StrEnum):
    """How bad a health error is. Information makes nothing unhealthy: it is advice."""

    INFORMATION = "information"
    WARNING = "warning"
    CRITICAL = "critical"


RANK: Final = {Level.CRITICAL: 0, Level.WARNING: 1, Level.INFORMATION: 2}
"""Worst first."""


class Category(StrEnum):
    """What kind of thing is wrong."""

    REPLICATION = "replication"
    FAILOVER = "failover"
    TEST_FAILOVER = "test-failover"
    CONFIGURATION = "configuration"
    INFRASTRUCTURE = "infrastructure"


class Subject(StrEnum):
    """What a health error is about."""

    ITEM = "item"
    NODE = "node"
    VAULT = "vault"


class Step(StrEnum):
    """What a sample of an item's figures covers."""

    MINUTE = "minute"
    HOUR = "hour"


class NoticeState(StrEnum):
    """What became of a notice to one receiver."""

    PENDING = "pending"
    SENT = "sent"
    FAILED = "failed"
