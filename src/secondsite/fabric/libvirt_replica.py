"""Replicas as libvirt domains: define, make stand alone, undefine. See `Fabric` for what the methods promise."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import libvirt

from secondsite.errors import ConflictError, NotFoundError
from secondsite.fabric.connection import Connection, lookup
from secondsite.fabric.disk_xml import image_path
from secondsite.fabric.domain_xml import (
    Kept,
    definition_root,
    disk_elements,
    parse_domain,
    read_labels,
    to_text,
)
from secondsite.fabric.images import delete_images, image_info
from secondsite.fabric.inventory import PowerState
from secondsite.fabric.kept_xml import displaced_by, displacing_xml, with_secrets
from secondsite.fabric.libvirt_inventory import inactive_xml, network_info, power_state, secure_xml
from secondsite.fabric.port import HypervisorError, ReplicaSpec
from secondsite.fabric.replica_rules import Existing, check_networks, may_keep_mac, place
from secondsite.fabric.replica_xml import TargetHost, replica_xml

_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class Replicas:
    """Defines and undefines. The caller serialises changes of one machine."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def define(self, spec: ReplicaSpec) -> str:
        """Define the machine and return its UUID."""
        for source in spec.disks.values():
            if not source.overlay.exists():
                raise NotFoundError(f"no image {source.overlay}", hint="create the overlay first")
        with self._connection.use(f"define {spec.name}") as connection:
            same_name = _existing(connection.lookupByName, spec.name)
            source_uuid = definition_root(spec.definition).findtext("uuid", "")
            same_identity = _existing(connection.lookupByUUIDString, source_uuid)
            replaced, displaced = place(spec, same_name, same_identity)
            networks = [network_info(network) for network in connection.listAllNetworks()]
            check_networks(spec, networks)
            identity = replaced.uuid if replaced is not None and spec.new_identity else str(uuids.uuid4())
            root = replica_xml(
                spec,
                TargetHost.from_capabilities(connection.getCapabilities()),
                exists=lambda path: Path(path).exists(),
                uuid=identity,
                keep_mac=lambda network: may_keep_mac(spec, networks, network),
            )
            if displaced is not None:
                displacing_xml(root, displaced)
            text = to_text(root)
            if replaced is not None:
                old = lookup(connection, replaced.uuid)
                secrets = secure_xml(old)
                # The source's definition came without console passwords; on the way back they are here.
                text = with_secrets(text, secrets)
                replaced = replace(replaced, text=with_secrets(replaced.text, secrets))
                _make_room(old, spec.name)
            domain = _define(connection, text, replaced)
            domain.setAutostart(0)
            if read_labels(parse_domain(inactive_xml(domain))) != spec.labels:
                raise HypervisorError(f"{spec.name} was defined but does not carry our labels")
            return str(domain.UUIDString())

    def undefine(self, vm: str, *, keep_disks: bool) -> None:
        """See `Fabric.undefine`. A locked machine that this one displaced comes back."""
        with suppress(NotFoundError), self._connection.domain(vm, "undefine") as domain:
            if power_state(domain)[0] is not PowerState.OFF:
                raise ConflictError(f"{vm} is not off", hint="power it off first", vm=vm)
            text = inactive_xml(domain)
            if not keep_disks:
                # First: if this is cut short, the definition still tells what is left.
                self.delete_disks(images_of(text), but=domain.UUIDString())
            displaced = displaced_by(text)
            if displaced is None:
                domain.undefineFlags(_UNDEFINE)
            else:
                _bring_back(domain, displaced)

    def delete_disks(self, paths: Sequence[Path], *, but: str = "") -> None:
        """See `Fabric.delete_disks`; the machine `but` may have them."""
        with self._connection.use("look for users of images") as connection:
            wanted = set(paths)
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                with suppress(libvirt.libvirtError):  # gone meanwhile
                    used = wanted & set(images_of(domain.XMLDesc(0)))
                    if used and domain.UUIDString() != but:
                        raise ConflictError(
                            f"{', '.join(map(str, sorted(used)))} in use by {domain.name()}",
                            hint="power it off first",
                        )
        delete_images(paths)


def images_of(text: str) -> list[Path]:
    """Return the image files of a definition's disks (not of its drives for removable media)."""
    return [
        path
        for _key, disk in disk_elements(parse_domain(text))
        if disk.get("device", "disk") == "disk" and (path := image_path(disk)) is not None
    ]


def backed_images(text: str) -> list[Path]:
    """Return those images whose own header names a backing; none may be missing."""
    return [path for path in images_of(text) if image_info(path).backing is not None]


# -- what is there already -----------------------------------------------------------------------------------


def _existing(find: Any, key: str) -> Existing | None:
    domain = _lookup(find, key) if key else None
    if domain is None:
        return None
    return Existing(domain.UUIDString(), domain.name(), power_state(domain)[0], inactive_xml(domain))


def _lookup(find: Any, key: str) -> Any:
    try:
        return find(key)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _define(connection: Any, text: str, replaced: Existing | None) -> Any:
    """Define, or leave what was there before."""
    try:
        return connection.defineXML(text)
    except libvirt.libvirtError:
        if replaced is not None and _lookup(connection.lookupByUUIDString, replaced.uuid) is None:
            connection.defineXML(replaced.text)
        raise


def _make_room(domain: Any, name: str) -> None:
    _forget_belongings(domain)
    if domain.name() != name:
        domain.undefineFlags(_UNDEFINE)  # libvirt does not rename by defining


def _bring_back(domain: Any, displaced: Kept) -> None:
    connection = domain.connect()
    text = with_secrets(displaced.text, secure_xml(domain))
    _forget_belongings(domain)
    if parse_domain(text).findtext("name") != domain.name():
        domain.undefineFlags(_UNDEFINE)
    connection.defineXML(text).setAutostart(0)


def _forget_belongings(domain: Any) -> None:
    """Remove what libvirt keeps beside a definition. Checkpoints go as metadata only: bitmaps stay in the images."""
    if domain.hasManagedSaveImage():
        domain.managedSaveRemove()
    for checkpoint in domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)[::-1]:
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    for snapshot in domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)[::-1]:
        snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
