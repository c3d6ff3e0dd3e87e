"""The service's metrics: scraped with a token and read by Prometheus' own parser."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from secondsite.model.item import Operation
from secondsite.service.api.app import PREFIX, create_app
from secondsite.service.health.keeper import keep
from secondsite.service.usecases import operations, reports, tokens
from secondsite.service.vocabulary import Role
from support.service_world import ME, World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    secret = tokens.create_token(world.ctx, "prometheus", Role.READER).secret
    headers = {"Authorization": f"Bearer {secret}"}
    with TestClient(create_app(world.ctx), base_url=f"http://x{PREFIX}", headers=headers) as found:
        yield found


def scrape(client: TestClient) -> dict[str, Metric]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def values(found: dict[str, Metric], name: str, **labels: str) -> list[float]:
    return [
        sample.value
        for family in found.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def test_a_scrape_tells_items_health_rpo_and_what_nodes_count(world: World, client: TestClient) -> None:
    item = world.protected()
    world.clock.turn(seconds=30)
    counters = {"cycles": 9, "bytes_shipped": 4096, "missed_cycles": 1}
    source = {"item": item.id, "role": "source", "epoch": 1, "phase": "idle", "counters": counters}
    reports.take_report(world.ctx, item.source_node_id, {"items": [source]})
    journal = {"bytes": 100, "points": 3, "free": 500, "total": 1000, "runway_s": 7200}
    target = {"item": item.id, "role": "target", "epoch": 1, "journal": journal}
    reports.take_report(world.ctx, item.target_node_id, {"items": [target]})
    keep(world.ctx)
    found = scrape(client)
    assert values(found, "secondsite_items", state="protected") == [1.0]
    assert values(found, "secondsite_items", state="committed") == [0.0]
    assert values(found, "secondsite_items_by_health", health="critical") == [1.0]
    assert values(found, "secondsite_item_health_level", item="web-1") == [2.0]
    assert values(found, "secondsite_item_rpo_seconds", item="web-1", item_id=item.id) == [30.0]
    assert values(found, "secondsite_item_rpo_threshold_seconds") == [60.0]
    assert values(found, "secondsite_item_cycles_total") == [9.0]
    assert values(found, "secondsite_item_shipped_bytes_total") == [4096.0]
    assert values(found, "secondsite_item_cycles_overrun_total") == [1.0]
    assert values(found, "secondsite_item_cycles_failed_total") == [0.0]
    assert values(found, "secondsite_item_journal_runway_seconds") == [7200.0]
    assert values(found, "secondsite_health_errors", code="journal-nearly-full", level="critical") == [1.0]
    assert values(found, "secondsite_nodes", state="alive") == [2.0]
    assert values(found, "process_resident_memory_bytes")[0] > 1 << 20


def test_jobs_and_commands_are_counted_once(world: World, client: TestClient) -> None:
    scrape(client)
    world.protected()
    job = operations.start_operation(world.ctx, ME, "web-1", Operation.TEST_FAILOVER)
    found = scrape(client)
    assert values(found, "secondsite_jobs_active", operation="test-failover") == [1.0]
    assert values(found, "secondsite_jobs_ended_total", operation="enable", state="Succeeded") == [1.0]
    world.run(job.id)
    for _ in range(2):
        found = scrape(client)
        assert values(found, "secondsite_jobs_active", operation="test-failover") == []
        assert values(found, "secondsite_job_duration_seconds_count", operation="test-failover") == [1.0]
        started = {"kind": "target.test_start"}
        assert values(found, "secondsite_command_latency_seconds_count", stage="fetch", **started) == [1.0]
        assert values(found, "secondsite_command_latency_seconds_count", stage="answer", **started) == [1.0]


def test_names_follow_prometheus_conventions(world: World, client: TestClient) -> None:
    world.protected()
    found = scrape(client)
    ours = {name: family for name, family in found.items() if not name.startswith("process_")}
    assert len(ours) > 20
    for name, family in ours.items():
        assert re.fullmatch(r"secondsite_[a-z_]+", name), name
        assert not name.endswith(("_ms", "_minutes", "_kb", "_mib", "_percent")), name
        assert family.documentation.endswith("."), name
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples), name


def test_a_scrape_needs_a_token(client: TestClient) -> None:
    assert client.get("/metrics", headers={"Authorization": "Bearer nonsense"}).status_code == 401
