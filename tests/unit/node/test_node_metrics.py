"""A node's metrics: scraped over HTTP and read by Prometheus' own parser."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from secondsite.errors import UnavailableError
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, Sequence
from secondsite.model.manifest import PointKind, format_time
from secondsite.model.policy import Policy
from secondsite.node.config import NodeConfig
from secondsite.node.metrics import MetricsServer, NodeMetrics, serve
from secondsite.node.records import Acked, ItemRecord, ItemStore, Role
from secondsite.node.source.cycle import CycleOutcome

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SOURCE = ItemId("0b6c7e9a-0000-4000-8000-00000000aaaa")
TARGET = ItemId("0b6c7e9a-0000-4000-8000-00000000bbbb")


@dataclass
class OneReplicator:
    """The replicators of a node with one source."""

    outcomes: list[CycleOutcome] = field(default_factory=list)
    error: Exception | None = None

    def find(self, item: ItemId) -> OneReplicator | None:
        return self if item == SOURCE else None

    def cycle(self, seconds: float) -> None:
        sequence = Sequence(len(self.outcomes) + 1)
        self.outcomes.append(
            CycleOutcome(PointKind.DELTA, sequence, Digest("aa" * 32), NOW, 100, 50, seconds)
        )


class Measured:
    def find(self, item: ItemId) -> Mapping[str, Any] | None:
        if item != TARGET:
            return None
        return {
            "bytes": 7000,
            "points": 5,
            "free": 10,
            "total": 20,
            "runway_s": None,
            "to_fold": {"bytes": 30},
        }


@pytest.fixture
def replicators() -> OneReplicator:
    return OneReplicator()


@pytest.fixture
def metrics(tmp_path: Path, replicators: OneReplicator) -> NodeMetrics:
    items = ItemStore(tmp_path)
    acked = Acked(Sequence(3), Digest("bb" * 32), format_time(NOW.replace(minute=0, second=0)), "ss-1")
    common = {"digest_key": "00" * 32, "policy": Policy(), "disks": (DiskKey("vda"),), "epoch": Epoch(1)}
    counters = {"cycles": 4, "bytes_shipped": 900, "failed_cycles": 2}
    items.put(
        ItemRecord(item=SOURCE, name="web-1", role=Role.SOURCE, acked=acked, counters=counters, **common)  # type: ignore[arg-type]
    )
    items.put(ItemRecord(item=TARGET, name="db-1", role=Role.TARGET, **common))  # type: ignore[arg-type]
    return NodeMetrics(items, replicators, Measured(), lambda: True, lambda: NOW.replace(second=30))  # type: ignore[arg-type]


def scrape(metrics: NodeMetrics) -> dict[str, Metric]:
    server = MetricsServer(0, metrics)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
    finally:
        server.close()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    family = next(family for family in found.values() for sample in family.samples if sample.name == name)
    return next(
        sample.value
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_scrape_tells_items_cycles_bytes_and_journals(
    metrics: NodeMetrics, replicators: OneReplicator
) -> None:
    replicators.cycle(1.5)
    replicators.cycle(40)
    found = scrape(metrics)
    assert value(found, "secondsite_node_items", role="source") == 1
    assert value(found, "secondsite_node_items", role="active") == 0
    assert value(found, "secondsite_node_item_lag_seconds", item="web-1") == 30.0
    assert value(found, "secondsite_node_shipped_bytes_total", item="web-1") == 900
    assert value(found, "secondsite_node_cycles_total", item="web-1", item_id=SOURCE) == 4
    assert value(found, "secondsite_node_cycles_failed_total", item="web-1") == 2
    assert value(found, "secondsite_node_resyncs_total", item="web-1") == 0
    assert value(found, "secondsite_node_journal_bytes", item="db-1") == 7000
    assert value(found, "secondsite_node_journal_points", item="db-1") == 5
    assert value(found, "secondsite_node_journal_to_fold_bytes", item="db-1") == 30
    assert found["secondsite_node_journal_runway_seconds"].samples == []
    assert value(found, "secondsite_node_service_connected") == 1
    assert value(found, "process_resident_memory_bytes") > 1 << 20
    bucket = "secondsite_node_cycle_duration_seconds_bucket"
    assert value(found, bucket, le="2.0") == 1
    assert value(found, bucket, le="+Inf") == 2


def test_each_cycle_is_observed_once(metrics: NodeMetrics, replicators: OneReplicator) -> None:
    count = "secondsite_node_cycle_duration_seconds_count"
    replicators.cycle(1)
    assert value(scrape(metrics), count) == 1
    assert value(scrape(metrics), count) == 1
    replicators.cycle(1)
    replicators.error = UnavailableError("no")
    found = scrape(metrics)
    assert value(found, count) == 2
    assert value(found, "secondsite_node_item_failing", item="web-1") == 1


def test_it_is_off_unless_a_port_is_set_and_a_taken_port_ends_nothing(metrics: NodeMetrics) -> None:
    assert NodeConfig.__dataclass_fields__["metrics_port"].default is None
    assert serve(None, metrics) is None
    first = serve(0, metrics)
    assert first is not None
    assert serve(first.port, metrics) is None
    first.close()
