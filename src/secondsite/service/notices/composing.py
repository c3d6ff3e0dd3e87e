"""What a notice says. Pure.

Each event is a message of its own; when there are more than a receiver is to get now, the last message is a digest of all the
rest. The event's id is in the text: a notice that arrives twice (the service died between sending and noting it) can be recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from secondsite.service.health.place_rules import NODE_RULES, VAULT_RULES
from secondsite.service.health.rule import Rule
from secondsite.service.health.rules import ITEM_RULES
from secondsite.service.store.records import Event
from secondsite.service.vocabulary import Severity

DIGEST_LINES: Final = 100
_EVERY: Final[list[Rule[Any]]] = [*ITEM_RULES, *NODE_RULES, *VAULT_RULES]
_RULES: Final = {rule.code: rule for rule in _EVERY}
_RULE_OF: Final = {"rpo-exceeded": "rpo"}
"""Events of the monitor that have another code than the health rule of the same thing."""
_ORDER: Final = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)


@dataclass(frozen=True, slots=True)
class Message:
    """A message and the events that it tells."""

    title: str
    body: str
    severity: Severity
    event_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """How the vault, its items and its nodes are called."""

    vault: str
    items: Mapping[str, str]
    nodes: Mapping[str, str]


def compose(due: Sequence[Event], budget: int, names: Names) -> list[Message]:
    """Return at most `budget` messages that tell all events, or none if the budget is used up."""
    if budget <= 0 or not due:
        return []
    if len(due) <= budget:
        return [_single(event, names) for event in due]
    return [*(_single(event, names) for event in due[: budget - 1]), _digest(due[budget - 1 :], names)]


def _single(event: Event, names: Names) -> Message:
    lines = [event.message, ""]
    rule = _RULES.get(_RULE_OF.get(event.code, event.code))
    if rule is not None:
        lines += ["Possible causes:", *(f"- {cause}" for cause in rule.causes), "", f"Do: {rule.action}", ""]
    lines.append(_line_of_origin(event, names))
    title = f"[{event.severity.value}] {names.vault}: {event.code}{_where(event, names)}"
    return Message(title, "\n".join(lines), event.severity, (event.id,))


def _digest(many: Sequence[Event], names: Names) -> Message:
    worst = min((event.severity for event in many), key=_ORDER.index)
    counts = {severity: sum(event.severity is severity for event in many) for severity in _ORDER}
    shown = ", ".join(f"{count} {severity.value}" for severity, count in counts.items() if count)
    lines = [
        f"[{event.severity.value}] {event.time:%H:%M:%S} {event.message} (event {event.id})"
        for event in many[:DIGEST_LINES]
    ]
    if len(many) > DIGEST_LINES:
        lines.append(f"... and {len(many) - DIGEST_LINES} more, up to event {many[-1].id}")
    title = f"[{worst.value}] {names.vault}: {len(many)} events ({shown})"
    return Message(title, "\n".join(lines), worst, tuple(event.id for event in many))


def _where(event: Event, names: Names) -> str:
    name = names.items.get(event.item_id or "") or names.nodes.get(event.node_id or "")
    return "" if name is None else f" ({name})"


def _line_of_origin(event: Event, names: Names) -> str:
    job = "" if event.job_id is None else f", job {event.job_id}"
    return f"Event {event.id} of {event.time:%Y-%m-%d %H:%M:%S} UTC, vault {names.vault}{job}"
