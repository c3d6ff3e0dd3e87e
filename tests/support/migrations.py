"""Moves machines between the hypervisors of a test, as an administrator does with `virsh migrate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import libvirt

from secondsite.lab.hypervisor import Hypervisor


def migrate(
    domain: libvirt.virDomain,
    to: Hypervisor,
    folder: Path,
    *,
    undefine: bool = False,
    images: Mapping[Path, Path] | None = None,
) -> libvirt.virDomain:
    """Move a machine, running or off, over Unix sockets in `folder`; return the domain that it is over there.

    undefine: leave no definition behind. images: copy its disks, here to there; else both sides use the same files.
    """
    flags = libvirt.VIR_MIGRATE_PERSIST_DEST
    if undefine:
        flags |= libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    destination = to.connect()
    if not domain.isActive():
        return domain.migrate3(destination, {}, flags | libvirt.VIR_MIGRATE_OFFLINE)
    # Unsafe: libvirt does not know that this file system is the same for both.
    flags |= libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE
    parameters = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{folder / 'migrate.sock'}"}
    if images:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
        text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
        for here, there in images.items():
            text = text.replace(str(here), str(there))
        parameters |= {
            libvirt.VIR_MIGRATE_PARAM_DISKS_URI: f"unix://{folder / 'disks.sock'}",
            libvirt.VIR_MIGRATE_PARAM_DEST_XML: text,
            libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: text,
        }
    return domain.migrate3(destination, parameters, flags)
