"""How the service lets two nodes authenticate to each other, by what they tell in their inventories."""

from __future__ import annotations

from typing import Any

import pytest

from secondsite.service.store import nodes
from secondsite.service.usecases import reports
from secondsite.service.workflows.transport import as_source, as_target, kerberos_of
from support.service_world import World

ADDRESSES: dict[str, Any] = {
    "source": "id-a",
    "target": "id-b",
    "source_address": ["a", 1],
    "target_address": ["b", 2],
}
A = {"principal": "HTTP/a@R", "service": "", "address": ""}
B = {"principal": "HTTP/b@R", "service": "HTTP/b@R", "address": "[::1]:8083"}
PLAIN = {"node": "id-b", "host": "b", "port": 2}


def facts(source: dict[str, str], target: dict[str, str]) -> dict[str, Any]:
    return {**ADDRESSES, "source_kerberos": source, "target_kerberos": target}


def test_two_nodes_with_kerberos_use_it() -> None:
    known = facts(A, B)
    assert as_source(known, "source") == {"source_node": "id-a", "source_principal": "HTTP/a@R"}
    kerberos = {"node": "id-b", "host": "::1", "port": 8083, "auth": "kerberos", "service": "HTTP/b@R"}
    assert as_target(known, "target") == kerberos


@pytest.mark.parametrize(
    "known",
    [
        ADDRESSES,  # of a job that an older service began
        facts({}, {}),
        facts({}, B),
        facts(A, {}),
        facts(A, {**B, "address": ""}),  # it does not listen now
        facts(A, {**B, "service": ""}),
        facts(A, {**B, "address": "nonsense"}),
    ],
)
def test_else_certificates_are_used(known: dict[str, Any]) -> None:
    assert as_target(known, "target") == PLAIN


def test_the_way_back_is_decided_by_the_same_facts() -> None:
    known = facts(B, A)  # the node of "source" listens: it becomes the target
    assert as_target(known, "source")["service"] == "HTTP/b@R"
    assert as_source(known, "target")["source_principal"] == "HTTP/a@R"


def kerberos(world: World, node: str) -> Any:
    with world.store.reading() as tx:
        return kerberos_of(tx, nodes.get(tx, node))


def tell(world: World, node: str, told: object) -> None:
    inventory = {"vms": [], "networks": [], "kerberos": told}
    reports.take_report(world.ctx, world.node(node), {"inventory": inventory})


def test_what_a_node_tells_counts_until_it_tells_something_else(world: World) -> None:
    assert kerberos(world, "host-ams") == {}
    tell(world, "host-ams", {**B, "error": None})
    assert kerberos(world, "host-ams") == B
    tell(world, "host-ams", None)
    assert kerberos(world, "host-ams") == {}


def test_a_name_that_two_nodes_claim_counts_for_neither(world: World) -> None:
    tell(world, "host-ams", A)
    tell(world, "host-rtm", {**B, "principal": A["principal"]})
    assert kerberos(world, "host-ams") == kerberos(world, "host-rtm") == {}


@pytest.mark.parametrize("told", ["x", [], {"principal": 5, "service": None}, {"principal": ""}])
def test_nonsense_is_no_kerberos(world: World, told: object) -> None:
    tell(world, "host-ams", told)
    assert kerberos(world, "host-ams").get("service", "") == ""
    assert as_target(facts(A, kerberos(world, "host-ams")), "target") == PLAIN
