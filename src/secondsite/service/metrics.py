"""The service's figures for Prometheus, made when they are asked for.

They need a Reader's token like everything else: names and states of machines tell an attacker where to strike, loopback is no proof of who
asks, and Prometheus sends a token (`authorization`) as easily as none. Gauges and counters come from the store and so survive a restart; the two histograms (jobs,
commands) begin with the first scrape after a start.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from secondsite import __version__
from secondsite.model.figures import COUNTERS, JOURNAL
from secondsite.model.item import ItemState
from secondsite.service.context import Context
from secondsite.service.health.metering import MEASURED
from secondsite.service.store import clouds, items, metrics, nodes, notices
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item
from secondsite.service.usecases.health import ItemHealth
from secondsite.service.vocabulary import JobState

BUCKETS_S: Final = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600)
OVERLAP: Final = timedelta(minutes=5)
"""What ended is noted in the order of commits, which is not always that of the clock: each look goes back so far."""
_LEVELS: Final = {"normal": 0, "warning": 1, "critical": 2}
_LABELS: Final = ("item", "item_id")


class ServiceMetrics:
    """A collector over the store, with the registry that serves it."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._lock = threading.Lock()
        self._since = ctx.clock()
        self._seen: dict[str, datetime] = {}
        self._jobs = Histogram(
            "secondsite_job_duration_seconds",
            "How long jobs took from their start to their end.",
            ["operation"],
            buckets=BUCKETS_S,
            registry=None,
        )
        self._commands = Histogram(
            "secondsite_command_latency_seconds",
            "How long commands waited for their node (fetch) and then for its answer (answer).",
            ["kind", "stage"],
            buckets=BUCKETS_S,
            registry=None,
        )
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Name nothing in advance: a registration must not cost a look at everything."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return every family, from one read of the store."""
        now = self._ctx.clock()
        with self._ctx.store.reading() as tx:
            families = [
                _gauge("info", "The service's version.", ["version"], {(__version__,): 1}),
                *self._items(tx, now),
                *_places(tx),
                *_jobs(tx),
            ]
            self._observe(tx, now)
        yield from families
        yield from self._jobs.collect()
        yield from self._commands.collect()

    def _items(self, tx: Transaction, now: datetime) -> Iterator[Metric]:
        listed, health = items.listed(tx), ItemHealth(tx, now)
        states = Counter(item.state.value for item in listed)
        yield _gauge(
            "items",
            "Items by state.",
            ["state"],
            {(state.value,): states[state.value] for state in ItemState},
        )
        levels = {item.id: str(health.of(item)[0]["level"]) for item in listed}
        counts = Counter(levels.values())
        yield _gauge(
            "items_by_health", "Items by health.", ["health"], {(level,): counts[level] for level in _LEVELS}
        )
        yield _of_items(
            "item_health_level",
            "0 normal, 1 warning, 2 critical.",
            listed,
            {item.id: _LEVELS[levels[item.id]] for item in listed},
        )
        yield _of_items(
            "item_rpo_seconds",
            "Age of the newest recovery point.",
            listed,
            {
                item.id: max(0.0, (now - item.last_point_time).total_seconds())
                for item in listed
                if item.last_point_time is not None and item.state in MEASURED
            },
        )
        thresholds = {policy.id: policy.policy.rpo_threshold_s for policy in clouds.list_policies(tx)}
        policies = {mapping.id: mapping.policy_id for mapping in clouds.list_mappings(tx)}
        yield _of_items(
            "item_rpo_threshold_seconds",
            "Above it there is an alert.",
            listed,
            {item.id: thresholds[policies[item.cloud_mapping_id]] for item in listed},
        )
        yield from _reported(listed)

    def _observe(self, tx: Transaction, now: datetime) -> None:
        with self._lock:
            since = self._since - OVERLAP
            for job in metrics.jobs_ended_since(tx, since):
                if self._is_new(f"job:{job.id}", job.ended):
                    self._jobs.labels(job.what).observe(_seconds(job.began, job.ended))
            for command in metrics.commands_ended_since(tx, since):
                if command.fetched is not None and self._is_new(f"command:{command.id}", command.ended):
                    waited = self._commands.labels(command.what, "fetch")
                    waited.observe(_seconds(command.began, command.fetched))
                    ran = self._commands.labels(command.what, "answer")
                    ran.observe(_seconds(command.fetched, command.ended))
            self._seen = {key: ended for key, ended in self._seen.items() if ended > now - 2 * OVERLAP}
            self._since = max(self._since, now)

    def _is_new(self, key: str, ended: datetime) -> bool:
        if key in self._seen:
            return False
        self._seen[key] = ended
        return True


def _reported(listed: list[Item]) -> Iterator[Metric]:
    """What the nodes said of the items last."""
    for counter, (name, text) in COUNTERS.items():
        family = CounterMetricFamily(f"secondsite_item_{name}", text, labels=_LABELS)
        for item in listed:
            # A counter that its node has not begun is zero; a source that has said nothing has no counters at all.
            if isinstance((item.source_report or {}).get("counters"), dict):
                counted = _number(item.source_report, "counters", counter) or 0.0
                family.add_metric([item.name, item.id], counted)
        yield family
    for key, (name, text) in JOURNAL.items():
        found = {item.id: _number(item.target_report, "journal", key) for item in listed}
        values = {item_id: value for item_id, value in found.items() if value is not None}
        yield _of_items(f"item_journal_{name}", text, listed, values)


def _places(tx: Transaction) -> Iterator[Metric]:
    known = nodes.listed(tx)
    silent = sum(node.silent for node in known)
    yield _gauge(
        "nodes",
        "Nodes by whether they answer.",
        ["state"],
        {("alive",): len(known) - silent, ("silent",): silent},
    )
    yield _gauge(
        "health_errors",
        "What is wrong now, by rule.",
        ["code", "level"],
        {(code, level): many for code, level, many in metrics.errors_by_code(tx)},
    )
    receivers, pending = notices.receivers(tx), notices.pending(tx)
    told = CounterMetricFamily(
        "secondsite_notices", "Notices by receiver and what became of them.", labels=["receiver", "result"]
    )
    for receiver in receivers:
        told.add_metric([receiver.name, "sent"], receiver.sent)
        told.add_metric([receiver.name, "failed"], receiver.failed)
    yield told
    waiting = {(receiver.name,): pending.get(receiver.id, 0) for receiver in receivers}
    yield _gauge("notices_pending", "Notices that wait to be sent.", ["receiver"], waiting)


def _jobs(tx: Transaction) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "secondsite_jobs_ended", "Jobs that have ended.", labels=["operation", "state"]
    )
    active: Counter[tuple[str, str]] = Counter()
    for operation, state, many in metrics.jobs_by_state(tx):
        if JobState(state).ended:
            ended.add_metric([operation, state], many)
        else:
            active[operation, state] += many
    yield ended
    yield _gauge("jobs_active", "Jobs that have not ended.", ["operation", "state"], active)
    yield _gauge(
        "commands_open", "Commands whose node has not answered.", [], {(): metrics.open_commands(tx)}
    )


def _gauge(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"secondsite_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _of_items(name: str, text: str, listed: list[Item], values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"secondsite_{name}", text, labels=_LABELS)
    for item in listed:
        if item.id in values:
            family.add_metric([item.name, item.id], values[item.id])
    return family


def _number(report: Mapping[str, Any] | None, part: str, key: str) -> float | None:
    found = (report or {}).get(part)
    value = found.get(key) if isinstance(found, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _seconds(first: datetime, last: datetime) -> float:
    return max(0.0, (last - first).total_seconds())
