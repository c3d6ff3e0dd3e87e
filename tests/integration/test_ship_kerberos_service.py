"""What the service orders when both nodes have set Kerberos up, on the way there and on the way back."""

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


def test_the_orders_name_principals_and_services_both_ways(sites: TwoSites) -> None:
    for node in (sites.a, sites.b):
        name = f"HTTP/{node.name}@R"
        kerberos = {"principal": name, "service": name, "address": f"{node.name}:8083", "error": None}
        node.report(
            inventory={
                "host": {"name": node.name},
                "vms": node.vms,
                "networks": [{"name": "lan", "isolated": False, "active": True}],
                "kerberos": kerberos,
            }
        )
        assert sites.get(f"/nodes/{node.name}")["kerberos"] == kerberos
    sites.protect()
    assert sites.b.args("target.create")["source_principal"] == "HTTP/host-ams@R"
    there = {"host": "host-rtm", "port": 8083, "auth": "kerberos", "service": "HTTP/host-rtm@R"}
    assert sites.a.args("source.start")["target"] == {"node": sites.b.id, **there}

    sites.succeed("planned-failover")
    sites.succeed("commit")
    sites.succeed("reverse")
    assert sites.a.args("target.adopt")["source_principal"] == "HTTP/host-rtm@R"
    back = {"host": "host-ams", "port": 8083, "auth": "kerberos", "service": "HTTP/host-ams@R"}
    assert sites.b.args("source.start")["target"] == {"node": sites.a.id, **back}
