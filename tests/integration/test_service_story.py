"""The service as a process, with scripted nodes over real mutual TLS: a machine's whole way there and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.service_node import TwoSites, two_sites

pytestmark = pytest.mark.integration


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(tmp_path) as found:
        yield found


def test_a_machine_goes_to_the_other_site_and_comes_back(sites: TwoSites) -> None:
    ready = sites.get("/protectable-items")
    assert [(machine["name"], machine["ready"]) for machine in ready] == [("web-1", True)]
    sites.protect()
    item = sites.item()
    assert (item["state"], item["epoch"], item["active_side"]) == ("protected", 1, "primary")
    assert sites.get("/protectable-items") == []

    test = sites.succeed("test-failover")
    assert sites.item()["test_state"] == "running"
    assert sites.b.args("target.test_start") == {
        "sequence": None,
        "name": "web-1-test",
        "networks": {"lan": "lan-test"},
    }
    assert test["result"]["vm"]
    assert test["result"]["task_seconds"]["start the test machine"] >= 0
    refused = sites.api.post("/items/web-1/planned-failover")
    assert refused.status_code == 409
    assert refused.json()["error"]["hint"] == "clean it up first: cleanup-test"
    sites.succeed("cleanup-test")
    assert sites.item()["last_test_time"] is not None

    there = sites.succeed("planned-failover", shutdown_timeout_s=7)
    assert sites.a.args("source.prepare") == {"shutdown_timeout_s": 7}
    failover = sites.b.args("target.failover")
    assert failover["new_epoch"] == 2
    assert failover["networks"] == {"lan": "lan-rtm"}
    assert failover["sequence"] == there["result"]["point"]["sequence"]
    assert sites.a.args("source.demote") == {"new_epoch": 2}
    item = sites.item()
    assert (item["state"], item["epoch"], item["active_side"]) == ("commit-pending", 2, "recovery")
    assert item["failover"]["vm"] == there["result"]["vm"]

    sites.succeed("commit")
    assert sites.get("/items/web-1/points") == []
    sites.succeed("reverse")
    item = sites.item()
    assert (item["state"], item["direction"]) == ("protected", "recovery-to-primary")
    resumed = sites.b.args("source.start")
    assert resumed["resume"] is True
    assert resumed["vm"] == there["result"]["vm"]
    assert resumed["target"]["node"] == sites.a.id

    sites.succeed("planned-failover")
    assert sites.a.args("target.failover")["networks"]["lan-rtm"] == "lan"
    sites.succeed("commit")
    sites.succeed("reverse")
    item = sites.item()
    assert (item["state"], item["direction"], item["epoch"]) == ("protected", "primary-to-recovery", 3)

    sites.succeed("disable")
    assert sites.a.kinds()[-1] == "source.stop"
    assert sites.b.kinds()[-1] == "target.remove"
    assert sites.get("/items") == []
    assert [entry["state"] for entry in sites.get("/items?disabled=true")] == ["disabled"]
    assert [machine["name"] for machine in sites.get("/protectable-items")] == ["web-1"]
    assert all(count == 1 for node in sites.nodes for count in node.ran.values())
    sites.protect()
