"""What a health rule is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from secondsite.service.health.facts import ItemFacts, NodeFacts, VaultFacts
from secondsite.service.health.vocabulary import RANK, Category, Level, Subject

F = TypeVar("F", ItemFacts, NodeFacts, VaultFacts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[F]):
    """One thing that can be wrong. `holds` says what is wrong in one sentence, or returns None.

    told: whether an event tells when it begins and ends; where it is false, another part writes that event.
    after_s: it must hold so long before that event, so that a short fault wakes nobody.
    """

    code: str
    category: Category
    level: Level
    summary: str
    causes: tuple[str, ...]
    action: str
    holds: Callable[[F], str | None]
    told: bool = True
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """That a rule holds for something now."""

    subject: Subject
    subject_id: str
    code: str
    category: Category
    level: Level
    message: str
    summary: str
    causes: tuple[str, ...]
    action: str
    told: bool
    after_s: float


def find(rule: Rule[F], facts: F, subject: Subject, subject_id: str) -> Finding | None:
    """Return what the rule finds, or None."""
    message = rule.holds(facts)
    if message is None:
        return None
    return Finding(
        subject,
        subject_id,
        rule.code,
        rule.category,
        rule.level,
        message,
        rule.summary,
        rule.causes,
        rule.action,
        rule.told,
        rule.after_s,
    )


def level_of(found: Sequence[Finding]) -> str:
    """Return the worst level; information is advice and makes nothing unhealthy."""
    worst = min((RANK[finding.level] for finding in found), default=RANK[Level.INFORMATION])
    return {RANK[Level.CRITICAL]: "critical", RANK[Level.WARNING]: "warning"}.get(worst, "normal")
