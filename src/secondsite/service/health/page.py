"""Writes the page docs/reference/health.md from the rules: `python -m secondsite.service.health.page > docs/reference/health.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

from secondsite.service.health import operation_rules, replication_rules
from secondsite.service.health.place_rules import NODE_RULES, VAULT_RULES
from secondsite.service.health.rule import Rule
from secondsite.service.health.rules import ITEM_RULES
from secondsite.service.health.vocabulary import RANK

_HEAD: Final = f"""# Health

What can be wrong, why, and what to do. Made from the rules by `python -m secondsite.service.health.page`; a test compares the two.

Health errors are what is wrong *now*: `secondsite health`, `GET /health-errors` for the vault and the `health_errors` of `GET /items/{{item}}`, each
with the time since when. What *was* is in the events: one when an error begins and one, `<code>-over`, when it ends, unless it was over
at once. An item is `critical` or `warning` if an error of that level holds for it, else `normal`; information is advice.

Figures: cycles are counted over the last {replication_rules.MONITORED.total_seconds() / 3600:.0f} hours, and more than {replication_rules.MISSED_MAX:.0%} missed are a warning; no point for
{replication_rules.POINT_OLD.total_seconds() / 60:.0f} minutes is one, too; the policy's RPO threshold is an alert of its own and changes nothing about the copy frequency. A journal's disk is critical with less than
{replication_rules.FREE_MIN:.0%} free or with less than {replication_rules.RUNWAY_CRITICAL_S / 3600:.0f} hours left at its growth of the last hours, and a warning below {replication_rules.RUNWAY_WARNING_S / 3600:.0f} hours.
A commit is overdue after {operation_rules.COMMIT_LONG.total_seconds() / 3600:.0f} hours, a test failover after {operation_rules.TEST_DUE.days} days.
"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for title, rules in (("Items", ITEM_RULES), ("Nodes", NODE_RULES), ("The vault", VAULT_RULES)):
        parts.append(f"## {title}\n")
        parts.extend(_entry(rule) for rule in _ordered(rules))
    return "\n".join(parts)


def _ordered(rules: Sequence[Rule[Any]]) -> list[Rule[Any]]:
    return sorted(rules, key=lambda rule: (RANK[rule.level], rule.code))


def _entry(rule: Rule[Any]) -> str:
    causes = "\n".join(f"- {cause}" for cause in rule.causes)
    return (
        f"### `{rule.code}`: {rule.summary}\n\n"
        f"Level {rule.level.value}, category {rule.category.value}. Possible causes:\n\n{causes}\n\nDo: {rule.action}.\n"
    )


if __name__ == "__main__":
    sys.stdout.write(page())
