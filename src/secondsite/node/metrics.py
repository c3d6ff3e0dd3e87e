"""A node's figures for Prometheus, over HTTP on a loopback port of its own; off unless `metrics_port` is set in node.json.

Loopback only and without a token: a node has no accounts, and what is told here is what `secondsite node` knows of its own items.
Whoever collects from afar puts an exporter's proxy before it. Everything is made when it is asked for; cycles are
observed from the replicators' own history, so a scrape at least each hour misses none at a copy frequency of 5 s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from secondsite import __version__
from secondsite.errors import UnavailableError
from secondsite.model.figures import COUNTERS, JOURNAL
from secondsite.model.ids import ItemId, Sequence
from secondsite.model.manifest import parse_time
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.source.replicator import Replicators

log = structlog.get_logger(__name__)

BUCKETS_S: Final = (0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600)
_LABELS: Final = ("item", "item_id")


class Measured(Protocol):
    """What tells a journal's space."""

    def find(self, item: ItemId) -> Mapping[str, Any] | None:
        """Return what was measured last."""


class NodeMetrics:
    """A collector over what the node knows; `registry` serves it."""

    def __init__(
        self,
        items: ItemStore,
        replicators: Replicators,
        space: Measured,
        connected: Callable[[], bool],
        clock: Callable[[], datetime],
    ) -> None:
        self._items = items
        self._replicators = replicators
        self._space = space
        self._connected = connected
        self._clock = clock
        self._lock = threading.Lock()
        self._observed: dict[ItemId, Sequence] = {}
        self.registry = CollectorRegistry()
        self._cycles = Histogram(
            "secondsite_node_cycle_duration_seconds",
            "How long cycles took, from the snapshot to the acknowledged point.",
            _LABELS,
            buckets=BUCKETS_S,
            registry=None,
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        """Return every family; called by each scrape."""
        records = self._items.all()
        info = GaugeMetricFamily("secondsite_node_info", "The node's version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily(
            "secondsite_node_service_connected",
            "Whether the last poll of the service was answered.",
            value=float(self._connected()),
        )
        roles = GaugeMetricFamily("secondsite_node_items", "Items by this node's role.", labels=["role"])
        for role in Role:
            roles.add_metric([role.value], sum(record.role is role for record in records))
        yield roles
        yield from self._sources([record for record in records if record.role is Role.SOURCE])
        yield from self._journals(records)

    def describe(self) -> list[Metric]:
        """Name nothing in advance: a registration must not cost a look at everything."""
        return []

    def _sources(self, records: list[ItemRecord]) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "secondsite_node_item_lag_seconds", "Age of the last acknowledged point.", labels=_LABELS
        )
        failing = GaugeMetricFamily(
            "secondsite_node_item_failing", "Whether the last cycle failed.", labels=_LABELS
        )
        now = self._clock()
        for record in records:
            labels = [record.name, record.item]
            if record.acked is not None:
                lag.add_metric(labels, max(0.0, (now - parse_time(record.acked.time)).total_seconds()))
            replicator = self._replicators.find(record.item)
            failing.add_metric(labels, float(replicator is not None and replicator.error is not None))
        yield lag
        yield failing
        for counter, (name, text) in COUNTERS.items():
            family = CounterMetricFamily(f"secondsite_node_{name}", text, labels=_LABELS)
            for record in records:
                family.add_metric([record.name, record.item], record.counters.get(counter, 0))
            yield family
        with self._lock:
            for record in records:
                self._observe(record)
        yield from self._cycles.collect()

    def _observe(self, record: ItemRecord) -> None:
        replicator = self._replicators.find(record.item)
        if replicator is None:
            return
        for outcome in list(replicator.outcomes):
            if outcome.sequence > self._observed.get(record.item, Sequence(0)):
                self._cycles.labels(record.name, record.item).observe(outcome.seconds)
                self._observed[record.item] = outcome.sequence

    def _journals(self, records: list[ItemRecord]) -> Iterator[Metric]:
        measured = [(record, found) for record in records if (found := self._space.find(record.item))]
        for key, (name, text) in JOURNAL.items():
            family = GaugeMetricFamily(f"secondsite_node_journal_{name}", text, labels=_LABELS)
            for record, found in measured:
                if found.get(key) is not None:
                    family.add_metric([record.name, record.item], float(found[key]))
            yield family
        family = GaugeMetricFamily(
            "secondsite_node_journal_to_fold_bytes",
            "Bytes of points that retention gives up and that are not folded yet.",
            labels=_LABELS,
        )
        for record, found in measured:
            family.add_metric([record.name, record.item], float(found.get("to_fold", {}).get("bytes", 0)))
        yield family


class MetricsServer:
    """Answers scrapes on 127.0.0.1. Port 0 takes a free one."""

    def __init__(self, port: int, metrics: NodeMetrics) -> None:
        try:
            self._server, self._thread = start_http_server(port, "127.0.0.1", metrics.registry)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on 127.0.0.1:{port} for metrics: {error}",
                hint="choose another metrics_port in node.json",
            ) from error

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._server.server_port)

    def close(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(port: int | None, metrics: NodeMetrics) -> MetricsServer | None:
    """Answer scrapes if a port is set. One that somebody else has must not keep machines from being replicated."""
    if port is None:
        return None
    try:
        return MetricsServer(port, metrics)
    except UnavailableError as error:
        log.warning("no metrics", error=error.to_dict())
        return None
