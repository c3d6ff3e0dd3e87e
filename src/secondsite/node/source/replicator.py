"""The replicator: one thread per item that runs a cycle every copy-frequency seconds, whatever the service does.

A cycle that fails is repeated with back-off; a cycle that overruns its interval is followed at once by the next, and
counted. Nothing here stops the guest, and nothing here forgets: what a failed cycle knew is found out again by the next.
A stale epoch ends the thread if the other side runs the machine: this one is fenced at once. A target that is merely ahead has
cancelled a failover, and the order that lets this side go on is under way: it is tried again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from secondsite.capture.port import Capture
from secondsite.capture.quiesce import Quiescer
from secondsite.errors import ConflictError, NotFoundError, SecondSiteError, StaleEpochError
from secondsite.model.ids import Epoch, ItemId
from secondsite.model.manifest import Consistency, PointKind, VmDefinition, parse_time
from secondsite.node.executor import Progress
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.source.cycle import Cycle
from secondsite.node.source.group import Meeting
from secondsite.node.source.groups import Groups, is_fit
from secondsite.node.source.outcome import CycleOutcome
from secondsite.node.source.window import ResyncRequiredError, phase_of
from secondsite.ship.backoff import EAGER_STEPS_S, CycleBackoff
from secondsite.ship.sender import Sender

HISTORY: Final = 720
SCHEDULE_LOOK_S: Final = 30.0
"""How often a replication that was put off looks at the clock, which may be set meanwhile."""
CYCLES_REPORTED: Final = 12

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Adapters:
    """What the composition root gives a replicator."""

    capture: Callable[[ItemRecord], Capture]
    sender: Callable[[ItemRecord, threading.Event], Sender]
    definition: Callable[[ItemRecord], VmDefinition]
    adopt_checkpoint: Callable[[ItemRecord, str], None]
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    groups: Groups | None = None
    quiescer: Callable[[ItemRecord], Quiescer | None] = lambda _: None
    tell: Callable[[ItemId, str, str], None] = lambda _item, _code, _message: None
    superseded: Callable[[ItemId, Epoch], None] = lambda _item, _epoch: None
    """Told, from the item's thread, that the other side runs the machine under this epoch. Must not wait for the thread."""


class Replicator:
    """Replicates one item. `start` and `stop` may be called again and again; `run_once` only while it is stopped."""

    def __init__(self, items: ItemStore, item: ItemId, adapters: Adapters) -> None:
        self.items = items
        self.item = item
        self.clock = adapters.clock
        self.monotonic = adapters.monotonic
        self._adapters = adapters
        self._cycle = Cycle(self, items.get(item))
        self._sender: Sender | None = None
        self._compression = True
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._running = False
        self._done = 0
        self._total: int | None = None
        self._retry_at: float | None = None
        self.error: SecondSiteError | None = None
        self.outcomes: deque[CycleOutcome] = deque(maxlen=HISTORY)

    # -- ports of the cycle ------------------------------------------------------------------------------

    def capture(self, record: ItemRecord) -> Capture:
        """Return the capture that fits the machine's power state now."""
        return self._adapters.capture(record)

    def meet(self, record: ItemRecord, consistency: Consistency) -> AbstractContextManager[Meeting]:
        """Bring the cycle together with those of the item's group, if it has one."""
        groups = self._adapters.groups
        return nullcontext(Meeting()) if groups is None else groups.meet(record, consistency, self.cancelled)

    def quiescer(self, record: ItemRecord) -> Quiescer | None:
        """Return what freezes the guest."""
        return self._adapters.quiescer(record)

    def tell(self, code: str, message: str) -> None:
        """Have the service told what happened."""
        self._adapters.tell(self.item, code, message)

    def definition(self, record: ItemRecord) -> VmDefinition:
        """Return the machine's definition, without our lock on it."""
        return self._adapters.definition(record)

    def sender(self, record: ItemRecord) -> Sender:
        """Return the kept sender; a failed cycle drops it, and so does a policy that compresses otherwise."""
        if self._compression != record.policy.compression:
            self._drop_sender()
        if self._sender is None:
            self._sender = self._adapters.sender(record, self._stop)
            self._compression = record.policy.compression
        return self._sender

    def progress(self, done: int, total: int | None) -> None:
        """Remember how far the running cycle is."""
        self._done, self._total = done, total

    def cancelled(self) -> bool:
        """Whether the running cycle should give up."""
        return self._stop.is_set()

    # -- life ----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin; nothing happens if it runs."""
        if self.alive:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=f"replicate-{self.item[:8]}", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether it waits for its interval: its last cycle went well, and the next is not due."""
        return self.alive and not self._running and self.error is None

    def wake(self) -> None:
        """Do not wait for the interval or the back-off: run the next cycle now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop; a running cycle is given up and found out about by the next."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._drop_sender()

    def run_once(self, consistency: Consistency, report: Progress) -> CycleOutcome:
        """Run one cycle in the caller's thread, with quick retries, and return its outcome."""
        if self.alive:
            raise ConflictError("the replicator runs", hint="stop it first")
        self._stop.clear()
        for attempt in range(4):
            try:
                return self._once(consistency)
            except SecondSiteError as error:
                if attempt == 3 or error.retry == "never":
                    raise
                report(None, f"trying again: {error.message}")
                if self._stop.wait(1 << attempt):
                    raise
        raise AssertionError

    def status(self) -> dict[str, Any]:
        """Return what a report says of the replicator."""
        kind = self._cycle.kind
        if self.error is not None:
            phase = phase_of(self.error) if self.alive else "stopped"
        elif not self.alive:
            phase = "stopped"
        elif not self._running and self._until_start_s() > 0:
            phase = "scheduled"
        elif not self._running:
            phase = "idle"  # not what the last cycle was: the next may be long in coming
        else:
            phase = kind.value if kind in (PointKind.INITIAL, PointKind.RESYNC) else "delta"
        sender = self._sender
        progress = None
        if self._running and sender is not None:
            view = sender.progress.view()
            progress = {
                "bytes": self._done,
                "total_bytes": self._total,
                "rate": round(view.rate),
                "eta_s": self._eta(view.rate),
            }
        cycles = [outcome.describe() for outcome in list(self.outcomes)[-CYCLES_REPORTED:]]
        return {
            "phase": phase,
            "progress": progress,
            "error": None if self.error is None else self.error.to_dict(),
            "retry_in_s": None
            if self._retry_at is None
            else max(0.0, round(self._retry_at - self.monotonic(), 1)),
            "app_consistent": self._cycle.quiet.describe(),
            "group": None if self._adapters.groups is None else self._adapters.groups.describe(self.item),
            "last_cycle": cycles[-1] if cycles else None,
            "cycles": cycles,
        }

    # -- the loop ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = CycleBackoff(EAGER_STEPS_S)
        due = self.monotonic()
        self._wait_for_start()
        while not self._stop.is_set():
            interval = self.items.get(self.item).policy.copy_frequency_s
            due = min(due, self.monotonic())  # woken early: the interval begins now
            try:
                self._once(Consistency.CRASH)
                backoff.succeeded()
                due += interval
                if due < self.monotonic():
                    self.items.count(self.item, "missed_cycles")
                    due = self.monotonic()
                self._pause(due)
            except ResyncRequiredError as error:
                self.error = error  # no failure: it waits for its window
                due = self.monotonic() + interval
                self._pause(due)
            except SecondSiteError as error:
                if self._stop.is_set():
                    return
                if error.code == StaleEpochError.code and self._is_superseded(error):
                    return
                self._failed(error, backoff)
                due = self.monotonic()
            except Exception as error:
                log.exception("a cycle broke", item=self.item)
                self._failed(
                    SecondSiteError(
                        f"a cycle broke: {type(error).__name__}: {error}", hint="see the node's log"
                    ),
                    backoff,
                )
                due = self.monotonic()

    def _is_superseded(self, error: SecondSiteError) -> bool:
        """Whether another side has the item; if it runs the machine, this one steps down without being told."""
        role, current = error.attributes.get("role"), error.attributes.get("current")
        if role == Role.TARGET:
            return False
        self.error = error
        log.warning("superseded, replication ends", item=self.item, error=error.to_dict())
        if role == Role.ACTIVE and isinstance(current, int) and current > self.items.get(self.item).epoch:
            self._adapters.superseded(self.item, Epoch(current))
        return True

    def _wait_for_start(self) -> None:
        """Wait until the time that the initial replication was put off to; only `stop` cuts that short."""
        while not self._stop.is_set():
            left_s = self._until_start_s()
            if left_s <= 0:
                return
            self._stop.wait(min(left_s, SCHEDULE_LOOK_S))

    def _until_start_s(self) -> float:
        start_at = self.items.get(self.item).start_at
        return (parse_time(start_at) - self.clock()).total_seconds() if start_at else 0.0

    def _once(self, consistency: Consistency) -> CycleOutcome:
        self._running = True
        self._wake.clear()  # this is the cycle that was asked for
        try:
            outcome = self._cycle.run(consistency)
        except BaseException:
            self._drop_sender()
            raise
        finally:
            self._running = False
            self._done, self._total = 0, None
        self.error = None
        self.outcomes.append(outcome)
        return outcome

    def _failed(self, error: SecondSiteError, backoff: CycleBackoff) -> None:
        self.error = error
        self.items.count(self.item, "failed_cycles")
        wait_s = backoff.failed()
        log.warning("a cycle failed", item=self.item, retry_in_s=wait_s, error=error.to_dict())
        self._retry_at = self.monotonic() + wait_s
        self._pause(self._retry_at)
        self._retry_at = None

    def _pause(self, until: float) -> None:
        if self._stop.is_set():
            return
        self._wake.wait(max(0.0, until - self.monotonic()))
        self._wake.clear()

    def _drop_sender(self) -> None:
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _eta(self, rate: float) -> float | None:
        if not rate or self._total is None:
            return None
        return round(max(0, self._total - self._done) / rate, 1)


class Replicators:
    """All replicators of a node, by item. Thread-safe through the item's lock that commands hold."""

    def __init__(self, items: ItemStore, adapters: Adapters) -> None:
        self._items = items
        self._adapters = adapters
        self._lock = threading.Lock()
        self._by_item: dict[ItemId, Replicator] = {}
        self._groups = adapters.groups
        if self._groups is not None:
            self._groups.peers = self

    def start(self, item: ItemId) -> None:
        """Replicate the item; nothing happens if it is replicated already, is paused, or may not run yet."""
        record = self._items.find(item)
        if record is not None and (record.paused or record.held is not None):
            return
        with self._lock:
            replicator = self._by_item.get(item)
            if replicator is None or not replicator.alive:
                replicator = self._by_item[item] = Replicator(self._items, item, self._adapters)
            replicator.start()

    def start_all(self) -> None:
        """Go on with every item whose source this node is: after a restart, with or without the service."""
        if self._groups is not None:
            self._groups.start()
        for record in self._items.all():
            if record.role is Role.SOURCE:
                self.start(record.item)

    def stop(self, item: ItemId) -> None:
        """Stop replicating the item. Idempotent."""
        with self._lock:
            replicator = self._by_item.get(item)
        if replicator is not None:
            replicator.stop()

    def wake(self, item: ItemId) -> None:
        """Run the item's next cycle now."""
        with self._lock:
            replicator = self._by_item.get(item)
        if replicator is not None:
            replicator.wake()

    def takes_part(self, item: ItemId) -> bool:
        """See `group.Peers`: who has failed is not waited for, since its next try may be far off."""
        record, replicator = self._items.find(item), self.find(item)
        if record is None or replicator is None or record.role is not Role.SOURCE:
            return False
        return replicator.alive and replicator.error is None and is_fit(record)

    def call(self, item: ItemId) -> None:
        """See `group.Peers`."""
        replicator = self.find(item)
        if replicator is not None and replicator.idle:
            replicator.wake()

    def find(self, item: ItemId) -> Replicator | None:
        """Return the item's replicator, if it has one."""
        with self._lock:
            return self._by_item.get(item)

    def run_once(self, item: ItemId, consistency: Consistency, report: Progress) -> CycleOutcome:
        """Run one cycle in the caller's thread; the item's replicator must be stopped."""
        replicator = self.find(item)
        if replicator is None:
            with self._lock:
                replicator = self._by_item[item] = Replicator(self._items, item, self._adapters)
        return replicator.run_once(consistency, report)

    def adopt_checkpoint(self, record: ItemRecord, checkpoint: str) -> None:
        """Make the hypervisor know the bitmap that the replica's disks carry."""
        self._adapters.adopt_checkpoint(record, checkpoint)

    def forget_checkpoints(self, record: ItemRecord) -> None:
        """Remove our checkpoints from the machine. One that is gone has none."""
        with suppress(NotFoundError):
            self._adapters.capture(record).forget(keep=set())

    def close(self) -> None:
        """Stop them all."""
        with self._lock:
            replicators = list(self._by_item.values())
        for replicator in replicators:
            replicator.stop()
        if self._groups is not None:
            self._groups.close()
