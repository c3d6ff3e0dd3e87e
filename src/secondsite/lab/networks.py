"""The virtual networks of a lab hypervisor. Both sites have the same ones: each has a network namespace of its own.

"lab-prod" stands for a site's production network, "lab-test" for the isolated one of test failovers. Neither is
forwarded anywhere: a guest reaches its own network and no further.
"""

from __future__ import annotations

import libvirt

NETWORKS = {"lab-prod": 177, "lab-test": 178}
"""Name, and the third number of its addresses 192.168.N.0/24."""

_XML = """
<network>
  <name>{name}</name>
  <bridge name='vbr-{name}' stp='off' delay='0'/>
  <ip address='192.168.{number}.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.{number}.10' end='192.168.{number}.50'/></dhcp>
  </ip>
</network>
"""


def define(connection: libvirt.virConnect) -> list[str]:
    """Define and start the networks on this hypervisor, unless they are there; return their names."""
    existing = {network.name(): network for network in connection.listAllNetworks()}
    for name, number in NETWORKS.items():
        network = existing.get(name) or connection.networkDefineXML(_XML.format(name=name, number=number))
        if not network.isActive():
            network.create()
        network.setAutostart(True)
    return list(NETWORKS)
