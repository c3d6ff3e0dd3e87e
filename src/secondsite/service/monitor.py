"""Looks at everything once in a while: silent nodes, points that are too old, orders that stand until they are done,
sources that do not replicate, nodes whose role is not what the service believes.

Each finding is told once when it begins and once when it ends, as an event; what is true now is in the views.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from secondsite.model.ids import NodeId
from secondsite.model.item import ItemState
from secondsite.service.context import Context
from secondsite.service.pace import PORTION, UNPACED, Pace
from secondsite.service.store import clouds, events, items, jobs, nodes, pruning
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Node
from secondsite.service.usecases import consistency, standing
from secondsite.service.usecases.consistency import SILENT_AFTER
from secondsite.service.vocabulary import Severity

log = logging.getLogger("secondsite.service")

EVERY_S: Final = 5.0
PRUNE_EVERY: Final = timedelta(minutes=1)
WATCHED: Final = frozenset({ItemState.PROTECTED, ItemState.PAUSED})
"""States in which a point that is too old is told."""
TOLD: Final = frozenset({"replication-stopped", "report-missing", "inconsistent"})
"""Of what is wrong with an item now, what becomes an event, too; an error of a cycle is told by its node."""


@dataclass(slots=True)
class Monitor:
    """Runs `look` in a thread until it is closed; it also prunes, and writes SQLite's log back."""

    ctx: Context
    every_s: float = EVERY_S
    prune_workflows: Callable[[datetime], int] = lambda _before: 0
    """Removes records of workflows that ended before; returns how many it were."""
    _prune_next: datetime | None = field(default=None, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _since: datetime | None = field(default=None, init=False)
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self._stop.wait)

    def start(self) -> None:
        """Begin."""
        self._since = self.ctx.clock()
        self._thread = threading.Thread(target=self._loop, name="monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; returns when the thread has."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                look(self.ctx, self._since, self._pace)
                self._prune()
                self.ctx.store.checkpoint()
            except Exception:
                # It must outlive whatever it meets: nobody else would notice a silent node.
                log.exception("the monitor could not look; it tries again")

    def _prune(self) -> None:
        """Remove old rows once a minute, a bounded number at a time."""
        now = self.ctx.clock()
        if self._prune_next is not None and now < self._prune_next:
            return
        self._prune_next = now + PRUNE_EVERY
        with self.ctx.store.transaction() as tx:
            pruning.prune(tx, now)
        self.prune_workflows(now - pruning.COMMANDS_KEPT)


def look(ctx: Context, since: datetime | None = None, pace: Pace = UNPACED) -> None:
    """Look at everything once. Writes only what changed.

    `since`: when the service began to listen; before that no node could be heard. `pace`: it rests while it reads.
    """
    now = ctx.clock()
    with ctx.store.reading() as tx:
        silent = [
            node.id
            for node in nodes.listed(tx, inventory=False)
            if not node.silent and _heard(node, since) < now - SILENT_AFTER
        ]
        listed, thresholds = items.listed(tx, pace=pace), _thresholds(tx)
        alerts = [item.id for item in listed if item.rpo_alert != _too_old(thresholds, item, now)]
        ordered = [item.id for item in items.with_orders(tx)]
        wrong = _wrong(tx, listed, now, pace)
    if silent:
        _note_silent(ctx, silent, since, now)
    for some in pace.portions(alerts, PORTION):
        with ctx.store.transaction() as tx:
            for item_id in some:
                _alert(tx, items.get(tx, item_id, lock=True), now)
    for told in pace.portions(wrong, PORTION):
        with ctx.store.transaction() as tx:
            for event in told:
                if event.once is None or not events.written(tx, event.once):
                    events.add(tx, event)
    for orders in pace.portions(ordered, PORTION):
        with ctx.store.transaction() as tx:
            for item_id in orders:
                standing.follow(tx, items.get(tx, item_id, lock=True), now)


def _note_silent(ctx: Context, silent: Sequence[NodeId], since: datetime | None, now: datetime) -> None:
    with ctx.store.transaction() as tx:
        for node_id in silent:
            node = nodes.get(tx, node_id)
            if _heard(node, since) < now - SILENT_AFTER:
                nodes.change(tx, node_id, silent=True)
                message = f"node {node.name} does not answer"
                events.add(
                    tx, events.NewEvent(now, "node-silent", message, Severity.CRITICAL, node_id=node_id)
                )


def _wrong(tx: Transaction, listed: Sequence[Item], now: datetime, pace: Pace) -> list[events.NewEvent]:
    """Return what nodes say that is not as it should be, once per case: the same again after an operation is told anew."""
    known = {node.id: node for node in nodes.listed(tx, revoked=True, inventory=False)}
    found: list[events.NewEvent] = []
    settling = jobs.last_changes_ended(tx)
    for item in pace.through(listed):
        settled = settling.get(item.id)
        reasons = consistency.source_reasons(item, known, now) + consistency.role_reasons(
            item, known, settled
        )
        for reason in reasons:
            if reason.code not in TOLD:
                continue
            once = f"{reason.code}:{item.id}:{'' if settled is None else settled.isoformat()}"
            if not events.written(tx, once):
                message = f"{item.name}: {reason.message}"
                found.append(
                    events.NewEvent(now, reason.code, message, Severity.CRITICAL, item_id=item.id, once=once)
                )
    return found


def _heard(node: Node, since: datetime | None) -> datetime:
    last = node.last_seen or node.enrolled
    return last if since is None else max(last, since)


def _thresholds(tx: Transaction) -> dict[str, timedelta]:
    """Return by cloud mapping how old the newest point may be."""
    policies = {policy.id: policy.policy.rpo_threshold_s for policy in clouds.list_policies(tx)}
    return {
        mapping.id: timedelta(seconds=policies[mapping.policy_id]) for mapping in clouds.list_mappings(tx)
    }


def _too_old(thresholds: Mapping[str, timedelta], item: Item, now: datetime) -> bool:
    if item.state not in WATCHED or item.last_point_time is None:
        return False
    return now - item.last_point_time > thresholds[item.cloud_mapping_id]


def _alert(tx: Transaction, item: Item, now: datetime) -> None:
    old = _too_old(_thresholds(tx), item, now)
    if old == item.rpo_alert:
        return
    items.change(tx, item.id, rpo_alert=old)
    if old:
        assert item.last_point_time is not None
        age = (now - item.last_point_time).total_seconds()
        event = events.NewEvent(
            now,
            "rpo-exceeded",
            f"{item.name}: the newest recovery point is {age:.0f} s old",
            Severity.CRITICAL,
            item_id=item.id,
        )
    else:
        event = events.NewEvent(
            now,
            "rpo-kept",
            f"{item.name}: the newest recovery point is young enough again",
            item_id=item.id,
        )
    events.add(tx, event)
