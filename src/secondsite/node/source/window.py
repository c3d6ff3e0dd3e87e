"""The gate before a compare of whole disks: a source that lost its tracking reads them by itself only in the policy's window.

It remembers in the record that it waits, so that a restart does not compare either. An operator's order (`source.resync`) opens the gate, and
so does the last point of a failover. A compare that has begun goes on when the window closes; one that failed waits for the next.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from secondsite.errors import Retry, SecondSiteError
from secondsite.model.manifest import Consistency
from secondsite.model.schedule import MANUAL, may_resync
from secondsite.node.records import ItemRecord


class ResyncRequiredError(SecondSiteError):
    """Change tracking was lost, and the policy does not allow the compare now."""

    code: ClassVar[str] = "resync_required"
    retry: ClassVar[Retry] = Retry.LATER
    default_hint: ClassVar[str] = "resynchronize now: secondsite item resync; points that exist stay valid"


def phase_of(error: SecondSiteError) -> str:
    """Return the phase of an item whose last cycle ended with `error`."""
    return "resync-required" if isinstance(error, ResyncRequiredError) else "waiting"


def require_window(record: ItemRecord, consistency: Consistency, now: datetime) -> None:
    """Raise ResyncRequiredError if the item's next cycle would compare because tracking was lost, and may not now."""
    waits = record.tracking_lost and record.acked is not None and not record.acked.checkpoint
    if not waits or record.compare or consistency is not Consistency.CRASH:
        return
    window = record.policy.resync_window
    if may_resync(window, now):
        return
    when = "when an operator orders it" if window == MANUAL else f"in the policy's window, {window} UTC"
    raise ResyncRequiredError(
        f"change tracking of {record.name} was lost: its disks are compared {when}",
        item=record.item,
        window=window,
    )
