"""What lists show of nodes' inventories is picked out of them by the database, on every database that it supports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from secondsite.model.ids import NodeId, SiteId
from secondsite.service.store import nodes, vaults
from secondsite.service.store.database import Store
from secondsite.service.store.nodes import NOTHING_TOLD, Summary
from secondsite.service.store.records import Site

NOW = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)
HOST = {"name": "h", "cpus": 64, "memory": 1 << 39, "note": 'ä "quoted"'}
KERBEROS = {"principal": "host/h@EXAMPLE", "address": None}


def told(store: Store, **inventories: dict[str, Any] | None) -> dict[str, Summary]:
    """Add a node with each inventory; return what is told of each."""
    with store.transaction() as tx:
        vaults.create_site(tx, Site(SiteId("s"), "site", NOW))
        for name, inventory in inventories.items():
            text = dict.fromkeys(
                ("id", "name", "data_address", "certificate_serial", "public_key", "version"), name
            )
            nodes.add(tx, {**text, "site_id": "s", "roles": [], "enrolled": NOW})
            nodes.change(tx, NodeId(name), inventory=inventory, inventory_time=NOW)
    with store.reading() as tx:
        one_by_one = {
            name: nodes.summaries(tx, NodeId(name)).get(NodeId(name), NOTHING_TOLD) for name in inventories
        }
        assert {**dict.fromkeys(inventories, NOTHING_TOLD), **nodes.summaries(tx)} == one_by_one
    return one_by_one


@pytest.fixture
def store(url: str) -> Any:
    found = Store.open(url)
    yield found
    found.close()


def test_host_tickets_and_the_number_of_machines_are_told_of_each_node(store: Store) -> None:
    vms = [{"uuid": str(number), "disks": [1, 2, 3]} for number in range(7)]
    found = told(
        store,
        whole={"host": HOST, "vms": vms, "kerberos": KERBEROS},
        none_yet={"host": HOST, "vms": [], "kerberos": None},
        little={"networks": []},
        nothing=None,
    )
    assert found == {
        "whole": Summary(HOST, 7, KERBEROS),
        "none_yet": Summary(HOST, 0, None),
        "little": Summary(None, 0, None),
        "nothing": NOTHING_TOLD,
    }


def test_an_inventory_that_is_none_hides_no_other(store: Store) -> None:
    found = told(
        store, odd={"host": "text", "vms": 5}, odder={"vms": None}, whole={"host": HOST, "vms": [{}]}
    )
    assert (found["odd"], found["odder"].vms, found["whole"].vms) == (Summary("text", 0, None), 0, 1)
