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
) -> Capture:
    """Return the capture for a machine that runs or is shut off; ask again for every cycle.

    connection: a libvirt connection, or a URI. scratch: see `LibvirtCapture`. A machine that starts or stops
    between this and the snapshot makes the snapshot raise UnavailableError. A URI is opened once; what is
    returned does not open it again.
    """
    machine = Machine(connection, domain, disks)
    kind = LibvirtCapture if is_active(machine.domain()) else OfflineCapture
    return kind(machine.connection(), domain, disks, scratch, clock=clock)
