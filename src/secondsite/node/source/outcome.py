"""What one cycle did, as it is kept for statistics and told in reports."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from secondsite.model.ids import Digest, Sequence
from secondsite.model.manifest import PointKind


@dataclass(frozen=True, slots=True)
class CycleOutcome:
    """What one cycle did. `changed` counts bytes in logs and zero extents, `shipped` bytes on the wire."""

    kind: PointKind
    sequence: Sequence
    digest: Digest
    time: datetime
    changed: int
    shipped: int
    seconds: float

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "kind": self.kind.value,
            "sequence": self.sequence,
            "seconds": round(self.seconds, 3),
            "bytes_changed": self.changed,
            "bytes_shipped": self.shipped,
        }
