"""Enrolment of nodes, and their removal.

A registration key proves that somebody with the Contributor role invited a node to a site. The node's certificate
carries the id that the service gave it; the name is for people. Whoever holds a key can add a node but can't take over
one: a name that is in use is refused, unless the same key pair asks again because the answer was lost.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from secondsite.errors import ConflictError, InvalidInputError, UnauthenticatedError
from secondsite.model.ids import NodeId
from secondsite.service.context import Context
from secondsite.service.store import audit, events, items, nodes, vaults
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Node, Site
from secondsite.service.usecases.setup import checked_name
from secondsite.service.usecases.tokens import redeem_key
from secondsite.service.vocabulary import Severity
from secondsite.ship.identity import load_certificate

ROLES = frozenset({"source", "target"})


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the node gets."""

    node: NodeId
    site: Site
    certificate: bytes


def enrol(
    ctx: Context,
    *,
    key: str,
    csr: bytes,
    name: str,
    roles: list[str],
    data_address: str,
    storage: Any,
    version: str = "",
) -> Enrolled:
    """Check the key, issue a certificate and add the node. What is refused stands in the audit trail, too."""
    checked_name(name)
    if not roles or set(roles) - ROLES:
        raise InvalidInputError(f"not usable roles: {roles}", hint="choose of: source, target")
    check_address(data_address)
    values = {
        "roles": sorted(set(roles)),
        "data_address": data_address,
        "storage": storage,
        "version": version,
    }
    try:
        with ctx.store.transaction() as tx:
            enrolled = _enrol(tx, ctx, key, csr, name, values)
            _note(tx, ctx, name, "enrol", "done", f"at site {enrolled.site.name}")
    except (UnauthenticatedError, ConflictError) as error:
        admitted, detail = ctx.flood.admit(ctx.clock(), error.message)
        if admitted:
            with ctx.store.transaction() as tx:
                _note(tx, ctx, name, "enrol", "refused", detail)
        raise
    return enrolled


def _enrol(
    tx: Transaction, ctx: Context, key: str, csr: bytes, name: str, values: dict[str, Any]
) -> Enrolled:
    public_key = _public_key(csr)
    now = ctx.clock()
    known = nodes.find(tx, name)
    # The same key pair again: the answer was lost, so the key's use was counted before.
    site_id = redeem_key(tx, ctx, key, again=known is not None and known.public_key == public_key)
    site = vaults.site(tx, site_id)
    if known is not None and (known.public_key != public_key or known.site_id != site.id):
        raise ConflictError(
            f"there is a node {name!r} already", hint="remove that node first, or choose another name"
        )
    node = known.id if known is not None else NodeId(ctx.new_id())
    certificate = ctx.authority.issue(csr, node)
    values = {**values, "certificate_serial": f"{load_certificate(certificate).serial_number:x}"}
    if known is not None:
        nodes.change(tx, node, **values)
    else:
        nodes.add(
            tx,
            {
                "id": node,
                "name": name,
                "site_id": site.id,
                "public_key": public_key,
                "enrolled": now,
                **values,
            },
        )
        events.add(
            tx,
            events.NewEvent(now, "node-enrolled", f"node {name} enrolled at site {site.name}", node_id=node),
        )
    return Enrolled(node, site, certificate)


def _note(
    tx: Transaction, ctx: Context, node: str, what: str, outcome: str, detail: str | None = None
) -> None:
    audit.note(tx, audit.Line(ctx.clock(), node, "NODE", what, outcome, detail=detail))


def renew(ctx: Context, node_id: NodeId, csr: bytes) -> bytes:
    """Return a new certificate for a node that has a valid one, for the key of the request."""
    public_key = _public_key(csr)
    certificate = ctx.authority.issue(csr, node_id)
    with ctx.store.transaction() as tx:
        nodes.change(
            tx,
            node_id,
            public_key=public_key,
            certificate_serial=f"{load_certificate(certificate).serial_number:x}",
        )
        events.add(
            tx,
            events.NewEvent(
                ctx.clock(),
                "node-renewed",
                f"node {nodes.get(tx, node_id).name} has a new certificate",
                node_id=node_id,
            ),
        )
        _note(tx, ctx, nodes.get(tx, node_id).name, "renew", "done")
    return certificate


def remove_node(ctx: Context, id_or_name: str) -> Node:
    """Revoke a node that takes part in nothing. Its certificate is refused from now on; its name is free again."""
    with ctx.store.transaction() as tx:
        node = nodes.get(tx, id_or_name)
        if node.revoked:
            raise ConflictError(f"node {node.name} was removed already")
        users = items.listed(tx, node=node.id)
        if users:
            raise ConflictError(
                f"node {node.name} has a part in {len(users)} protected items: "
                + ", ".join(item.name for item in users[:5]),
                hint="disable them first",
            )
        nodes.leave_clouds(tx, node.id)
        tx.call()  # every node's poll comes back with the news
        nodes.change(tx, node.id, revoked=True, name=f"{node.name} (removed {node.id[:8]})")
        events.add(
            tx,
            events.NewEvent(
                ctx.clock(),
                "node-removed",
                f"node {node.name} was removed",
                Severity.WARNING,
                node_id=node.id,
            ),
        )
    return node


def check_address(address: str) -> None:
    """Check "host:port"; InvalidInputError otherwise."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInputError(f"not an address: {address!r}", hint="expected host:port")


def _public_key(csr: bytes) -> str:
    try:
        key = x509.load_pem_x509_csr(csr).public_key()
    except ValueError as error:
        raise InvalidInputError("the certificate request does not parse") from error
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
