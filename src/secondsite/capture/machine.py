"""A libvirt domain as capture sees it: its disks, its definition, whether it runs; and libvirt's errors as ours.

It opens the connection itself if it was given a URI, and again after it was lost; then no call waits longer than about
20 s for a daemon that hangs. Of a connection that it was given, the giver decides. What it does not do: change the domain.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import libvirt

from secondsite.capture.bitmaps import QCOW2, RAW, unsupported_image
from secondsite.capture.port import LIBVIRT_FORMAT
from secondsite.errors import (
    NotFoundError,
    SecondSiteError,
    TrackingLostError,
    UnavailableError,
    UnsupportedError,
)
from secondsite.libvirt_connection import KEEPALIVE, Keepalive, connect
from secondsite.model.ids import DiskKey
from secondsite.model.manifest import VmDefinition
from secondsite.model.units import SECTOR

_BEING_TAKEN_UP: Final = "held by monitor=init"
_NOT_TAKEN_UP: Final = (
    "libvirtd was started again and waits for this machine's QEMU; if that stays so for minutes, restart libvirtd once more:"
    " the machine runs on"
)
"""If libvirtd is killed amid a command, QEMU 7.2 now and then does not answer the next one's greeting."""
NO_BACKUP_JOB: Final = libvirt.VIR_ERR_NO_DOMAIN_BACKUP
_TRACKING_LOST: Final = frozenset(
    {libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT}
)
_UNSUPPORTED: Final = frozenset(
    {
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        libvirt.VIR_ERR_NO_SUPPORT,
    }
)
_FORMATS_HINT: Final = "qcow2 files, raw files and raw block devices are replicated: exclude the disk, or convert it with qemu-img convert"


class MachineGoneError(NotFoundError):
    """A protected machine is no longer known to its hypervisor."""

    code = "machine_gone"
    default_hint = (
        "it was undefined, or migrated to another host: bring it back here under the same UUID and replication goes on, "
        "or disable the item (and protect the machine at the host that it went to)"
    )


class DiskGoneError(NotFoundError):
    """A protected disk is no longer part of its machine."""

    code = "disk_gone"
    default_hint = "attach it again, or disable the item and protect the machine without the disk"


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """A disk that can be tracked. `path` is its active layer, and `format` that layer's.

    index: libvirt's number of the layer while the machine runs: QEMU's node is called by it.
    """

    key: DiskKey
    path: Path
    format: str = QCOW2
    index: int | None = None

    @property
    def keeps_bitmaps(self) -> bool:
        """Whether its image holds bitmaps, so that tracking outlives QEMU."""
        return self.format == QCOW2


class Machine:
    """See the module's docstring. `domain` is a UUID or a name; the UUID wins."""

    def __init__(
        self,
        connection: Any,
        domain: str,
        disks: Collection[DiskKey],
        *,
        keepalive: Keepalive = KEEPALIVE,
    ) -> None:
        """`connection` is a libvirt connection, or a URI that is opened when it is first needed."""
        self._uri = connection if isinstance(connection, str) else None
        self._keepalive = keepalive
        self._connection = None if self._uri is not None else connection
        self.name = domain
        self.keys = tuple(sorted(disks))

    def domain(self) -> Any:
        """Return the libvirt domain.

        Raises:
            MachineGoneError: there is none.
            UnavailableError: libvirtd does not answer.
        """
        with libvirt_errors(f"cannot look up {self.name}"):
            connection = self.connection()
            try:
                return connection.lookupByUUIDString(str(UUID(self.name)))
            except ValueError:
                return connection.lookupByName(self.name)

    def connection(self) -> Any:
        """Return the libvirt connection, opened if need be.

        Raises:
            UnavailableError: libvirtd does not answer.
        """
        if self._uri is not None and (self._connection is None or not self._connection.isAlive()):
            self._connection = connect(self._uri, self._keepalive)
        return self._connection

    def definition(self, domain: Any) -> VmDefinition:
        """Return what the other side needs to define the machine: the inactive XML, without secrets."""
        with libvirt_errors(f"cannot read the definition of {self.name}"):
            return VmDefinition(LIBVIRT_FORMAT, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def disks(self, domain: Any) -> dict[DiskKey, MachineDisk]:
        """Return the disks as they are now.

        Raises:
            DiskGoneError: the machine has no such disk any more.
            UnsupportedError: its changes cannot be tracked; names the disk.
        """
        return self._read_disks(domain, self.keys)

    def _read_disks(self, domain: Any, keys: Iterable[DiskKey]) -> dict[DiskKey, MachineDisk]:
        with libvirt_errors(f"cannot read the disks of {self.name}"):
            root = ET.fromstring(domain.XMLDesc(0))  # noqa: S314
        found = {}
        for element in root.iterfind("devices/disk"):
            target = element.find("target")
            if target is not None:
                found[target.get("dev")] = element
        disks = {}
        for key in keys:
            if key not in found:
                raise DiskGoneError(f"{self.name} has no disk {key}", disk=key)
            disks[key] = _tracked_disk(key, found[key])
        return disks

    def present_disks(self, domain: Any) -> list[MachineDisk]:
        """Return those of our disks that (still) can be tracked and whose image exists: for clearing up."""
        found = []
        for key in self.keys:
            with suppress(NotFoundError, UnsupportedError):
                disk = self._read_disks(domain, [key])[key]
                if disk.path.exists():
                    found.append(disk)
        return found

    def other_disks(self, domain: Any) -> list[str]:
        """Return the targets of all disks that are not ours, so that libvirt can be told to leave them alone."""
        with libvirt_errors(f"cannot read the disks of {self.name}"):
            root = ET.fromstring(domain.XMLDesc(0))  # noqa: S314
        targets = [target.get("dev", "") for target in root.iterfind("devices/disk/target")]
        return [target for target in targets if target not in self.keys]


def require_sectors(key: DiskKey, size: int) -> None:
    """Raise UnsupportedError if a raw image ends within a sector: what the guest sees of it differs then."""
    if size % SECTOR:
        raise UnsupportedError(
            f"disk {key} has {size} bytes, which is no multiple of {SECTOR}",
            disk=key,
            hint="shut the machine down and bring the image to whole sectors: truncate -s %512 IMAGE",
        )


def is_active(domain: Any) -> bool:
    """Whether the machine holds its disks open."""
    with libvirt_errors("cannot read the machine's state"):
        return bool(domain.isActive())


def _tracked_disk(key: DiskKey, element: ET.Element) -> MachineDisk:
    source, driver = element.find("source"), element.find("driver")
    kind = element.get("type")
    image_format = None if driver is None else driver.get("type")
    file = None if source is None else source.get({"file": "file", "block": "dev"}.get(str(kind), ""))
    if element.get("device", "disk") != "disk":
        raise UnsupportedError(
            f"{key} is no disk but a {element.get('device')}", disk=key, hint="leave it out"
        )
    if file is None:
        raise UnsupportedError(
            f"disk {key} is of type {kind!r}, neither a file nor a block device", disk=key, hint=_FORMATS_HINT
        )
    if image_format not in {QCOW2, RAW} or (kind == "block" and image_format != RAW):
        where = " on a block device" if kind == "block" else ""
        raise UnsupportedError(
            f"disk {key} has the format {image_format!r}{where}", disk=key, hint=_FORMATS_HINT
        )
    if element.find(".//encryption") is not None or element.find("source/slices") is not None:
        # Its file does not hold what the guest sees, so it would read differently when the machine is off.
        raise UnsupportedError(
            f"disk {key} is encrypted or a slice of its image", disk=key, hint="exclude it"
        )
    index = "" if source is None else source.get("index", "")
    return MachineDisk(key, Path(file), image_format, int(index) if index.isdigit() else None)


@contextmanager
def libvirt_errors(what: str) -> Iterator[None]:
    """Raise what libvirt raises in the enclosed calls as an error of ours."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translated(error, what) from error


def translated(error: libvirt.libvirtError, what: str) -> SecondSiteError:
    """Return the error of ours for one of libvirt's. What is not known is taken for passing."""
    code = error.get_error_code()
    message = f"{what}: {error.get_error_message()}"
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return MachineGoneError(message)
    if code in _TRACKING_LOST:
        return TrackingLostError(message, hint="the next cycle compares the disks with what was replicated")
    if (too_old := unsupported_image(message)) is not None:
        return too_old
    if code in _UNSUPPORTED:
        return UnsupportedError(message, libvirt_code=code)
    hint = _NOT_TAKEN_UP if _BEING_TAKEN_UP in message else None
    return UnavailableError(message, hint=hint, libvirt_code=code)
