"""How the nodes of an item authenticate to each other: by certificates, or by Kerberos where both ends have set it up.

A node tells in its inventory who it is (`principal`) and, while its listener takes tickets, where and as what (`address`, `service`). Nobody
can have another's name: a principal that two nodes claim counts for neither. Decided when an order to create, adopt or start is given.
"""

from __future__ import annotations

from secondsite.model.ids import NodeId
from secondsite.service.store import nodes
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Json, Node


def kerberos_of(tx: Transaction, node: Node) -> Json:
    """Return what the node offers: {principal, service, address}, each "" if it does not; {} without Kerberos."""
    told = _told(node)
    principal = told.get("principal", "")
    claimed = sum(_told(other).get("principal") == principal for other in nodes.listed(tx))
    return told if principal and claimed == 1 else {}


def _told(node: Node) -> Json:
    told = (node.inventory or {}).get("kerberos")
    if not isinstance(told, dict):
        return {}
    return {key: str(told.get(key) or "")[:512] for key in ("principal", "service", "address")}


def as_source(facts: Json, side: str) -> Json:
    """Return how `target.create` and `target.adopt` name the node of this side ("source" or "target") as their source."""
    principal = facts.get(f"{side}_kerberos", {}).get("principal")
    return {"source_node": facts[side]} | ({"source_principal": principal} if principal else {})


def as_target(facts: Json, side: str) -> Json:
    """Return how `source.start` names the node of this side as its target, for the node of the other side."""
    other = "source" if side == "target" else "target"
    host, port = facts[f"{side}_address"]
    place = {"node": NodeId(facts[side]), "host": host, "port": port}
    theirs, ours = facts.get(f"{side}_kerberos", {}), facts.get(f"{other}_kerberos", {})
    host, _, number = str(theirs.get("address", "")).rpartition(":")
    if not (ours.get("principal") and theirs.get("service") and host and number.isdigit()):
        return place
    return {
        **place,
        "host": host.strip("[]"),
        "port": int(number),
        "auth": "kerberos",
        "service": theirs["service"],
    }
