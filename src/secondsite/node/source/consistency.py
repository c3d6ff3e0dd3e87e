"""Application-consistent points: when the next one is due, and a capture that takes it with the guest frozen.

The times are kept in a file beside the record, so that a restart freezes nobody early. What fails costs the consistency of one point, a
counter and an event, never the cycle.

A try that failed is repeated after a twelfth of the time (5 min to 1 h): a guest agent that was installed meanwhile is used then, and a
guest whose cycles fail for want of a network is not frozen again and again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from secondsite import durable
from secondsite.capture.port import Capture, Snapshot
from secondsite.capture.quiesce import Quiescer
from secondsite.errors import InvalidInputError, SecondSiteError
from secondsite.model.manifest import Consistency, format_time, parse_time
from secondsite.node.records import ItemRecord, ItemStore

_RETRY_MIN: Final = timedelta(minutes=5)
_RETRY_MAX: Final = timedelta(hours=1)
_ASK_AGAIN_S: Final = 1.0

log = structlog.get_logger(__name__)


class AppConsistency:
    """The times of one item's freezes. `path`: where they are kept; losing it costs one freeze too many."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._path = path
        self._clock = clock
        self._tried: datetime | None = None
        self.reached_at: datetime | None = None
        """The time of the last application-consistent point that was acknowledged."""
        self._load()

    def is_due(self, hours: int | None) -> bool:
        """Say whether the next point is to be application-consistent. `hours`: the policy's; None: never."""
        if hours is None:
            return False
        now, every = self._clock(), timedelta(hours=hours)
        if self._tried is not None and self._tried != self.reached_at:
            retry = min(max(every / 12, _RETRY_MIN), _RETRY_MAX)
            if timedelta(0) <= now - self._tried < retry:
                return False
        if self.reached_at is None:
            return True
        return (
            not timedelta(0) <= now - self.reached_at < every
        )  # a clock that was set back is no reason to wait

    def tried(self) -> None:
        """A freeze begins."""
        self._tried = self._clock()
        self._save()

    def reached(self) -> None:
        """The point of the last try was acknowledged."""
        self.reached_at = self._tried
        self._save()

    def _load(self) -> None:
        try:
            fields = json.loads(self._path.read_text())
            self._tried, self.reached_at = (
                None if fields[key] is None else parse_time(fields[key]) for key in ("tried", "reached")
            )
        except (OSError, ValueError, KeyError, TypeError, InvalidInputError):
            self._tried = self.reached_at = None

    def _save(self) -> None:
        times = {"tried": self._tried, "reached": self.reached_at}
        document = {key: None if time is None else format_time(time) for key, time in times.items()}
        durable.write_atomic(self._path, json.dumps(document).encode())


class Ports(Protocol):
    """What this needs from the cycle's ports."""

    items: ItemStore
    clock: Callable[[], datetime]

    def quiescer(self, record: ItemRecord) -> Quiescer | None: ...

    def tell(self, code: str, message: str) -> None: ...


class QuietCapture:
    """A capture whose first snapshot begins with the guest frozen. `consistency` is that of the last snapshot."""

    def __init__(
        self, capture: Capture, consistency: Consistency, quiescer: Quiescer | None, times: AppConsistency
    ) -> None:
        self.consistency = consistency
        self.problem: SecondSiteError | None = None
        """Why the guest was not frozen, although that was due."""
        self._capture = capture
        self._quiescer = quiescer
        self._times = times

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        """See the port. A second one, after tracking turned out to be lost, freezes nobody again."""
        quiescer, self._quiescer = self._quiescer, None
        if quiescer is None:
            return self._capture.snapshot(since=since, new=new)
        self._times.tried()
        snapshot, self.problem = quiescer.around(lambda: self._capture.snapshot(since=since, new=new))
        if self.problem is None:
            self.consistency = Consistency.APPLICATION
        return snapshot

    def forget(self, keep: Collection[str]) -> None:
        """See the port."""
        self._capture.forget(keep)

    def tidy(self) -> None:
        """See the port."""
        self._capture.tidy()


class Quiet:
    """Freezes of one item's guest."""

    def __init__(self, ports: Ports, record: ItemRecord) -> None:
        self._ports = ports
        self.times = AppConsistency(ports.items.folder(record.item) / "app-consistent.json", ports.clock)
        self.problem: SecondSiteError | None = None
        """Why the last point that was due to be application-consistent is not."""
        self._stuck = False

    def thaw_leftover(self, record: ItemRecord) -> None:
        """Thaw what a node that died left frozen. A guest that does not answer now is asked again by the next cycle."""
        quiescer = self._ports.quiescer(record)
        self._stuck = False
        try:
            if quiescer is not None and quiescer.thaw_leftover():
                log.warning("thawed a guest that was left frozen", item=record.item)
                self._ports.items.count(record.item, "thawed_leftovers")
        except SecondSiteError as error:
            self._stuck = True
            log.warning("a guest that was left frozen does not thaw", item=record.item, error=error.to_dict())

    def capture(self, capture: Capture, record: ItemRecord, wanted: Consistency) -> QuietCapture:
        """Return `capture`, with a freeze if one is due. `wanted` says more than crash only of a guest that is off."""
        due = (
            wanted is Consistency.CRASH
            and not self._stuck
            and self.times.is_due(record.policy.app_consistent_hours)
        )
        quiescer = self._ports.quiescer(record) if due else None
        if quiescer is not None and not quiescer.has_guest():
            quiescer = (
                None  # it is off: there is nothing to freeze, and the next point of a running guest is due
            )
        return QuietCapture(capture, wanted, quiescer, self.times)

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it."""
        reached = self.times.reached_at
        return {
            "time": None if reached is None else format_time(reached),
            "problem": None if self.problem is None else self.problem.to_dict(),
        }

    def sealed(self, record: ItemRecord, capture: QuietCapture) -> None:
        """The point of `capture`'s snapshot was acknowledged."""
        if capture.consistency is Consistency.APPLICATION:
            self.times.reached()
            self.problem = None
            self._ports.items.count(record.item, "app_consistent_points")
        elif capture.problem is not None:
            self.problem = capture.problem
            self._ports.items.count(record.item, "app_consistent_failed")
            log.warning("no application-consistent point", item=record.item, error=capture.problem.to_dict())
            self._ports.tell(
                "app-consistent-failed",
                f"{record.name}: the point is only crash-consistent: {capture.problem.message}",
            )


def thaw_leftovers(
    items: ItemStore, quiescer: Callable[[ItemRecord], Quiescer], stopped: threading.Event
) -> threading.Thread:
    """Thaw in a thread every guest that the last run of this node left frozen, also of items that are not replicated now."""
    left = [record for record in items.all() if record.vm and quiescer(record).has_leftover()]

    def thaw() -> None:
        while left and not stopped.is_set():
            for record in list(left):
                try:
                    quiescer(record).thaw_leftover()
                    left.remove(record)
                except SecondSiteError as error:
                    log.warning("a guest is left frozen", item=record.item, error=error.to_dict())
            stopped.wait(_ASK_AGAIN_S if left else 0)

    thread = threading.Thread(target=thaw, name="thaw", daemon=True)
    thread.start()
    return thread
