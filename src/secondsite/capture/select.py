"""Which adapter fits the machine's state now. The two go on where the other left off."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secondsite.capture.libvirt import LibvirtCapture
from secondsite.capture.machine import Machine, is_active
from secondsite.capture.offline import OfflineCapture
from secondsite.capture.port import Capture
from secondsite.libvirt_connection import KEEPALIVE, Keepalive
from secondsite.model.ids import DiskKey


def _now() -> datetime:
    return datetime.now(UTC)


def capture_for(
    connection: Any,
    domain: str,
    disks: Collection[DiskKey],
    scratch: Path,
    *,
    clock: Callable[[], datetime] = _now,
    keepalive: Keepalive = KEEPALIVE,
) -> Capture:
    """Return the capture for a machine that runs or is shut off; ask again for every cycle.

    connection: a libvirt connection, or a URI. scratch: see `LibvirtCapture`. A machine that starts or stops
    between this and the snapshot makes the snapshot raise UnavailableError. A URI is opened once; what is
    returned does not open it again, but for the watch over scratch space after libvirtd was restarted.

    keepalive: how long a libvirtd that hangs is waited for, here and by what is returned, if it is a URI.

    Raises:
        NotFoundError: there is no such machine.
        UnavailableError: libvirtd does not answer.
    """
    machine = Machine(connection, domain, disks, keepalive=keepalive)
    if not is_active(machine.domain()):
        return OfflineCapture(machine.connection(), domain, disks, scratch, clock=clock)
    reopen = (
        Machine(connection, domain, disks, keepalive=keepalive).domain
        if isinstance(connection, str)
        else None
    )
    return LibvirtCapture(machine.connection(), domain, disks, scratch, clock=clock, reopen=reopen)
