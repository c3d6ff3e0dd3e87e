"""What an operation with a kill in it may put on the wire: what its points changed, and once more what the killed one had under way.

Who ships nothing and serves no listener (the service, a view server) costs nothing when it dies. Whoever else does may cost one
cycle, which is then shipped again whole; after QEMU or libvirtd died, what is compared is compared on each side, by digests.

What a point changed is counted from the points themselves, not from what its manifest says: that names everything which was shipped for it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from secondsite.errors import SecondSiteError
from secondsite.journal import PointInfo
from support.kill_victims import Victim
from support.lab_story import LabGuest, LabStory
from support.role_swaps import changed_bytes
from support.wire_meter import WireMeter

KIB = 1 << 10
_PER_POINT: Final = 64 * KIB
"""TLS, requests, a manifest, the framing of logs."""
_PER_OPERATION: Final = 256 * KIB
"""Handshakes anew, questions that are repeated until somebody is back, digests that are compared."""
_FREE: Final = frozenset({Victim.SERVICE, Victim.VIEW})


class KillBytes:
    """Begin it before an operation, end it right behind its last point. The policy must not compress: a byte is a byte then."""

    def __init__(self, lab: LabStory, guest: LabGuest, meter: WireMeter) -> None:
        self._lab = lab
        self._guest = guest
        self._meter = meter
        self._wire = 0
        self._known: set[int] = set()
        self._new: list[int] = []
        """Of each new point the bytes that it changed."""
        self.changed = 0
        self.resent = 0

    def begin(self) -> None:
        """Note what was sent and sealed so far."""
        self.changed = self.resent = 0
        self._new = []
        self._known = {point.sequence for points in self._points().values() for point in points}
        # After the points: of one that is sealed meanwhile the bytes would be counted and its changes not.
        self._wire = self._meter.total()

    def end(self) -> None:
        """Note it again. A base that was adopted keeps its point's sequence, so it is not new."""
        wire = self._meter.total() - self._wire
        self._new = [
            self._changed(site, before, point)
            for site, points in self._points().items()
            for before, point in zip([None, *points], points, strict=False)
            if point.sequence not in self._known
        ]
        self.changed = sum(self._new)
        self.resent = max(0, wire - self.changed)

    def problems(self, killed: Victim | None) -> list[str]:
        """Say whether more was sent than the kill explains."""
        again = 0 if killed is None or killed in _FREE else max(self._new, default=0)
        allowed = again + _PER_POINT * len(self._new) + _PER_OPERATION
        if self.resent <= allowed:
            return []
        return [
            f"{self.resent} bytes were sent beyond the {self.changed} that changed, at most {allowed} expected"
        ]

    def _points(self) -> dict[str, list[PointInfo]]:
        found = {}
        for site in ("primary", "secondary"):
            with suppress(SecondSiteError):  # no journal there now
                found[site] = self._lab.points(self._guest.name, site)
        return found

    def _changed(self, site: str, before: PointInfo | None, point: PointInfo) -> int:
        """Bytes in which a point differs from the one before it; what it names if that is not there any more."""
        if before is None:
            return point.changed
        disks: list[list[Path]] = []
        try:
            disks += [self._lab.extract(self._guest.name, each.sequence, site) for each in (before, point)]
            return changed_bytes(*disks)
        except SecondSiteError:  # pruned meanwhile
            return point.changed
        finally:
            for disk in (disk for each in disks for disk in each):
                disk.unlink()
