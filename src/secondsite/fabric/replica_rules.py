"""When a replica may be defined: what it may replace, and which networks it needs. Pure; adapter and fake share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secondsite.errors import ConflictError, NotFoundError
from secondsite.fabric.domain_xml import Kept, parse_domain, read_kept, read_labels
from secondsite.fabric.inventory import Labels, NetworkInfo, PowerState
from secondsite.fabric.port import ReplicaSpec


@dataclass(frozen=True, slots=True)
class Existing:
    """A machine that is there already, with its definition as it starts from next time."""

    uuid: str
    name: str
    power: PowerState
    text: str


def place(
    spec: ReplicaSpec, same_name: Existing | None, same_identity: Existing | None
) -> tuple[Existing | None, Kept | None]:
    """Return the machine that the replica replaces (or None), and the locked one that it carries along.

    `same_identity` is the machine with the UUID of the source; it does not matter to a replica with a new one. Raises
    ConflictError if the place is taken.
    """
    if spec.new_identity:
        if same_name is not None:
            _refuse_unless_ours(same_name, spec.labels)
        return same_name, None
    if same_name is not None and (same_identity is None or same_name.uuid != same_identity.uuid):
        raise ConflictError(
            f"another machine is called {spec.name}",
            hint="rename it, or give the replica another name",
            uuid=same_name.uuid,
        )
    if same_identity is None:
        return None, None
    root = parse_domain(same_identity.text)
    lock = read_kept(root, "lock")
    if lock is not None and same_identity.power is PowerState.OFF:
        # The way back: the old primary, which we locked, gives its place; it is kept until the replica stands alone.
        return same_identity, Kept(same_identity.text, autostart=False, reason=lock.reason)
    _refuse_unless_ours(same_identity, spec.labels)
    return same_identity, read_kept(root, "displaced")


def _refuse_unless_ours(existing: Existing, labels: Labels) -> None:
    found = read_labels(parse_domain(existing.text))
    if found is None or (found.item, found.role) != (labels.item, labels.role):
        raise ConflictError(
            f"a machine {existing.name} ({existing.uuid}) exists and is not a replica of this item",
            hint="rename or remove it; if it is the original, this host cannot hold its replica, too",
            uuid=existing.uuid,
        )
    if existing.power is not PowerState.OFF:
        raise ConflictError(f"{existing.name} is not off", hint="power it off first", uuid=existing.uuid)


def check_networks(spec: ReplicaSpec, networks: Sequence[NetworkInfo]) -> None:
    """Raise NotFoundError or ConflictError unless every network that `spec` maps to is there and active."""
    known = {network.name: network for network in networks}
    for name in {target for target in spec.networks.values() if target is not None}:
        if name == "user" or ":" in name:
            continue
        if name not in known:
            raise NotFoundError(
                f"this host has no network {name}",
                hint=f"define it, or map to one of: {', '.join(sorted(known)) or 'none'}",
                network=name,
            )
        if not known[name].active:
            raise ConflictError(
                f"the network {name} is not active",
                hint=f"virsh net-start {name}; virsh net-autostart {name}",
                network=name,
            )


def may_keep_mac(spec: ReplicaSpec, networks: Sequence[NetworkInfo], target: str) -> bool:
    """Whether an interface on `target` may have its original's MAC address.

    A test's copy of an address, on a network that others are on, would cut the original off.
    """
    isolated = any(network.name == target and network.isolated for network in networks)
    return not spec.new_identity or target == "user" or isolated
