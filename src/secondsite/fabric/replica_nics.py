"""Connecting a replica's interfaces by the network mapping. Pure: XML in, XML out.

A mapped interface goes to a virtual network ("name"), a host bridge ("bridge:name") or user-mode networking
("user"). One that is not mapped is disconnected: it stays in place, so that the guest finds its hardware, but leads
nowhere. It becomes `<interface type='user'>` with `<link state='down'/>`, because

- it needs no privilege and no network, so it works in session and system libvirt alike (tried on both);
- QEMU drops what either end of a link that is down sends, so user mode's way out is shut;
- an operator connects it later with one `virsh update-device`.

Rejected: type='null' (libvirt's QEMU driver refuses it), type='ethernet' (a tap device needs privileges), a network
of its own (session libvirt has none), leaving the interface out (the guest's configuration is by its slot and MAC).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Final

from secondsite.errors import InvalidInputError
from secondsite.fabric.domain_xml import network_of

_KEPT: Final = ("mac", "model", "boot", "address", "driver", "rom", "mtu", "acpi", "bandwidth")
"""What the guest sees, and its rate limits."""
_KEPT_IF_CONNECTED: Final = ("filterref", "vlan", "port", "link")
"""Who may speak to whom: kept, so that a filter or VLAN that the target lacks is refused and not lost."""


def connect_interfaces(
    parent: ET.Element, networks: Mapping[str, str | None], keep_mac: Callable[[str], bool]
) -> None:
    """Rewrite every <interface> below `parent` (<devices>)."""
    for interface in parent.findall("interface"):
        source = network_of(interface)
        target = None if source is None else networks.get(source)
        place = list(parent).index(interface)
        parent.remove(interface)
        parent.insert(place, _connected(interface, target, keep_mac))


def _connected(interface: ET.Element, target: str | None, keep_mac: Callable[[str], bool]) -> ET.Element:
    if target is None:
        new = ET.Element("interface", {"type": "user"})
        new.extend(_children(interface, _KEPT, drop_backend=True))
        ET.SubElement(new, "link", {"state": "down"})
        return new
    kind, _, name = target.partition(":") if ":" in target or target == "user" else ("network", "", target)
    if kind not in {"network", "bridge", "user"} or (kind != "user" and not name):
        raise InvalidInputError(
            f"not a network that a replica can be connected to: {target!r}",
            hint='name a virtual network, or "bridge:NAME", or "user"',
        )
    new = ET.Element("interface", {"type": kind})
    new.extend(_children(interface, _KEPT + _KEPT_IF_CONNECTED, drop_backend=kind == "user"))
    if kind != "user":
        attributes = {kind: name}
        old = interface.find("source")
        if kind == "network" and old is not None and old.get("portgroup"):
            attributes["portgroup"] = old.get("portgroup", "")
        ET.SubElement(new, "source", attributes)
    if not keep_mac(target):
        for mac in new.findall("mac"):
            new.remove(mac)
    return new


def _children(interface: ET.Element, tags: tuple[str, ...], *, drop_backend: bool) -> list[ET.Element]:
    """vhost and multiple queues are of tap devices only; the driver's name and queues go where there is none."""
    kept = [child for child in interface if child.tag in tags]
    if drop_backend:
        for child in kept:
            if child.tag == "driver":
                for attribute in ("name", "queues"):
                    child.attrib.pop(attribute, None)
    return [child for child in kept if child.tag not in {"filterref", "vlan", "port"} or not drop_backend]
