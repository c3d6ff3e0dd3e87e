"""What is wrong now, for people: an item's health, and the list over the whole vault. Since when comes from the kept list."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from secondsite.model.ids import ItemId
from secondsite.service.context import Context
from secondsite.service.health import rules
from secondsite.service.health.reading import Reader
from secondsite.service.health.rule import Finding, level_of
from secondsite.service.health.vocabulary import RANK, Category, Level, Subject
from secondsite.service.health.watched import Looked
from secondsite.service.store import health, items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Job


class ItemHealth:
    """The health of items at one instant. `only`: when some are asked for, not all. `looked`: the health watch's last look."""

    def __init__(
        self,
        tx: Transaction,
        now: datetime,
        only: Collection[ItemId] | None = None,
        looked: Looked | None = None,
    ) -> None:
        self._reader = Reader(tx, now, only, None if looked is None else looked.shares)
        self._now = now
        self._since = {row.key: row.since for row in health.listed(tx, subject=Subject.ITEM, only=only)}

    def of(self, item: Item) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the level with its reasons (no information among them), and the full list of health errors."""
        found = rules.of_item(self._reader.item(item))
        reasons = [
            {"severity": finding.level.value, "code": finding.code, "message": finding.message}
            for finding in found
            if finding.level is not Level.INFORMATION
        ]
        errors = [
            _described(finding) | {"message": finding.message, "since": self._since_of(finding)}
            for finding in found
        ]
        return {"level": level_of(found), "reasons": reasons}, errors

    def active_change(self, item: Item) -> Job | None:
        """Return the item's unfinished job, which health looks at, too."""
        return self._reader.active_change(item)

    def _since_of(self, finding: Finding) -> datetime:
        return self._since.get((finding.subject, finding.subject_id, finding.code), self._now)


def health_errors(ctx: Context) -> list[dict[str, Any]]:
    """Return what is wrong now, one entry per rule: the worst first, then those that hit most machines."""
    with ctx.store.reading() as tx:
        now = ctx.clock()
        reader = Reader(tx, now)
        found = reader.all()
        since = {row.key: row.since for row in health.listed(tx)}
        names: dict[str, str] = {item.id: item.name for item in items.listed(tx)}
        names |= {node.id: node.name for node in reader.nodes.values()}
    by_rule: dict[tuple[str, Level], list[Finding]] = {}
    for finding in found:
        by_rule.setdefault((finding.code, finding.level), []).append(finding)
    entries = [
        _described(group[0])
        | {
            "machines": sum(finding.subject is Subject.ITEM for finding in group),
            "since": min(since.get(_key(finding), now) for finding in group),
            "where": [
                {
                    "subject": finding.subject.value,
                    "id": finding.subject_id,
                    "name": names.get(finding.subject_id, finding.subject_id),
                    "message": finding.message,
                    "since": since.get(_key(finding), now),
                }
                for finding in group
            ],
        }
        for group in by_rule.values()
    ]
    return sorted(entries, key=_rank)


def _rank(entry: dict[str, Any]) -> tuple[int, int, bool, str]:
    infrastructure = entry["category"] == Category.INFRASTRUCTURE.value
    return RANK[Level(entry["level"])], -entry["machines"], not infrastructure, entry["code"]


def _key(finding: Finding) -> health.Key:
    return finding.subject, finding.subject_id, finding.code


def _described(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "category": finding.category.value,
        "level": finding.level.value,
        "summary": finding.summary,
        "possible_causes": list(finding.causes),
        "recommended_action": finding.action,
    }
