"""Who may run a protected machine after its host has booted, and who starts it: the gate.

Why: a host that died may come back after the other side has taken over. If the hypervisor started its machines by itself
they would run twice. So this node owns the autostart of the machines it replicates: the hypervisor's flag is off, kept
in the record, given back when the protection ends. After a boot each machine is *held* (not started; paused if it runs)
until someone confirms that this side may write:

- the target, if its epoch is the record's and it is a target; else the service, if it names this node under this epoch
  (of a failed-over machine only the service: its other side may have been told to go on meanwhile, and has no listener);
- an operator on this host (`secondsite node start-held`).

An active target, or a service that names another node, under a later epoch: stepping down, at once. Anything else, also
silence: held, and asked again. What was held stays held over restarts of this daemon.

It also finishes what a cut left of stepping down, and steps down when a source was superseded. The replicator learns that from a refused
cycle; but cycles may be far apart, paused, or waiting for their next try, so the gate asks the target of every source now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from secondsite import durable
from secondsite.errors import SecondSiteError, StaleEpochError
from secondsite.fabric.port import Fabric, PowerState
from secondsite.model.ids import Epoch, ItemId, NodeId
from secondsite.node.autostart import look_at
from secondsite.node.records import Held, ItemRecord, ItemStore, Role
from secondsite.node.source.fence import Fence
from secondsite.node.source.held import START_ORDER, take_order
from secondsite.node.source.replicator import Replicators

LOOK_S: Final = 1.0
WATCH_EVERY: Final = 5
"""Machines that are not held are looked at in every fifth round."""
PROBE_S: Final = 20.0
"""How long a source may go on beside the other side when the link is back and no service tells it."""
ASKERS: Final = 8
MARKER: Final = "booted"
GATED: Final = (Role.SOURCE, Role.ACTIVE)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger(__name__)


class Standing(Protocol):
    """Whom the gate asks. Both raise SecondSiteError when there is no answer."""

    def target(self, record: ItemRecord) -> Epoch:
        """Return the epoch of the item's target; StaleEpochError's code, with `role` and `current`, if it is no target."""
        ...

    def service(self) -> Mapping[str, Mapping[str, Any]]:
        """Return for each item `{epoch, source: node}` as the service has it."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means. superseded: by whoever has this epoch. decided: nobody else need be asked."""

    reason: str
    confirmed: bool = False
    superseded: Epoch | None = None
    decided: bool = True


class Gate:
    """See the module's docstring. `begin` before anything is replicated, then `start`."""

    def __init__(
        self,
        items: ItemStore,
        replicators: Replicators,
        fabric: Fabric,
        run: Path,
        standing: Standing,
        node: NodeId,
        boot_id: Callable[[], str] = lambda: _BOOT_ID.read_text().strip(),
    ) -> None:
        self._items = items
        self._replicators = replicators
        self._fabric = fabric
        self._fence = Fence(items, replicators, fabric)
        self._marker = run / MARKER
        self._standing = standing
        self._node = node
        self._boot_id = boot_id
        self._superseded: dict[ItemId, Epoch] = {}
        self._fenced: set[ItemId] = set()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """Hold every machine if the host has booted since the last call; durable before it says so."""
        boot = self._boot_id()
        if self._marker.exists() and self._marker.read_text() == boot:
            return
        for record in self._items.all():
            if record.role in GATED and record.vm and record.held is None:
                log.info("held until its epoch is confirmed", item=record.item, name=record.name)
                self._items.change(record.item, held=Held("the host has booted; nobody has confirmed it yet"))
        durable.write_atomic(self._marker, boot.encode())

    def start(self) -> None:
        """Begin to look, and beside that to ask: who does not answer holds up nothing else."""
        for name, run in (("gate", self._run), ("gate-ask", self._run_asking)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(30)

    def superseded(self, item: ItemId, epoch: Epoch) -> None:
        """The other side runs the item's machine under this epoch: step down, in the gate's own thread."""
        self._superseded[item] = epoch
        self._wake.set()

    def look(self, *, watch: bool = True) -> None:
        """Look at every machine once."""
        for record in self._items.all():
            self._act(record.item, lambda current: self._tend(current, watch))

    def ask(self) -> None:
        """Ask about what is held, once."""
        held = [record for record in self._items.all() if _is_held(record)]
        if held:
            self._ask(held)

    def probe(self) -> None:
        """Ask the targets of all sources that run whether the other side has taken over."""
        sources = [
            record for record in self._items.all() if record.role is Role.SOURCE and not _is_held(record)
        ]
        for record, verdict in zip(sources, self._ask_targets(sources), strict=True):
            if verdict.superseded is not None:
                log.warning("the other side runs it", item=record.item, epoch=verdict.superseded)
                self.superseded(record.item, verdict.superseded)

    # -- the loop ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        rounds = 0
        while not self._stop.is_set():
            try:
                self.look(watch=rounds % WATCH_EVERY == 0)
            except Exception:
                log.exception("the gate broke")
            rounds += 1
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def _run_asking(self) -> None:
        probed = time.monotonic()
        while not self._stop.wait(LOOK_S):
            try:
                self.ask()
                if time.monotonic() - probed >= PROBE_S:
                    self.probe()
                    probed = time.monotonic()
            except Exception:
                log.exception("the gate could not ask")

    def _act(self, item: ItemId, act: Callable[[ItemRecord], None]) -> None:
        """Do something with the item as it is now, unless a command has it; there is always a next round."""
        lock = self._items.lock(item)
        if self._stop.is_set() or not lock.acquire(blocking=False):
            return
        try:
            record = None if item in self._items.damaged else self._items.find(item)
            if record is not None:
                act(record)
        except SecondSiteError as error:
            log.warning("the gate could not act", item=item, error=error.to_dict())
        finally:
            lock.release()

    def _tend(self, record: ItemRecord, watch: bool) -> None:
        if record.role is not Role.STANDBY:
            self._fenced.discard(record.item)
        epoch = self._superseded.get(record.item)
        if epoch is not None:
            self._step_down(record, epoch)
        elif record.role is Role.STANDBY:
            if record.item not in self._fenced:
                self._fence.ensure(record)
                self._fenced.add(record.item)
        elif _is_held(record):
            self._hold(record)
        elif record.role in GATED and record.vm and watch:
            look_at(self._items, self._fabric, record)

    def _step_down(self, record: ItemRecord, epoch: Epoch) -> None:
        try:
            if record.role in (Role.SOURCE, Role.PREPARING, Role.PREPARED):
                self._fence.demote(record.item, epoch)
            elif record.role is Role.STANDBY:
                self._fence.ensure(record)
        except StaleEpochError as error:
            log.info("not superseded any more", item=record.item, error=error.to_dict())
        self._superseded.pop(record.item, None)

    # -- what is held --------------------------------------------------------------------------------------

    def _hold(self, record: ItemRecord) -> None:
        assert record.held is not None
        if take_order(self._items.folder(record.item) / START_ORDER, record.epoch):
            log.warning("started by an operator's word", item=record.item, name=record.name)
            self._let_go(record, start=True)
            return
        if self._fabric.power(record.vm) is PowerState.RUNNING:
            log.warning("runs unconfirmed after the host's boot: paused", item=record.item, name=record.name)
            # Before it is done: a pause that nobody knows to be ours would never end.
            self._items.change(record.item, held=replace(record.held, suspended=True), runs=True)
            self._fabric.suspend(record.vm)

    def _ask(self, held: list[ItemRecord]) -> None:
        """Ask the targets, each of those that do not answer then the service, once for all. No lock is held meanwhile."""
        verdicts = self._ask_targets(held)
        if not all(verdict.decided for verdict in verdicts):
            known = self._ask_service()
            verdicts = [
                verdict if verdict.decided else self._service_says(record, verdict, known)
                for record, verdict in zip(held, verdicts, strict=True)
            ]
        for asked, verdict in zip(held, verdicts, strict=True):
            self._act(
                asked.item,
                lambda record, asked=asked, verdict=verdict: self._follow(record, asked, verdict),  # type: ignore[misc]
            )

    def _ask_targets(self, records: list[ItemRecord]) -> list[Verdict]:
        if not records:
            return []
        with ThreadPoolExecutor(ASKERS, thread_name_prefix="gate-ask") as pool:
            return list(pool.map(self._ask_target, records))

    def _ask_target(self, record: ItemRecord) -> Verdict:
        if record.role is Role.ACTIVE:
            return Verdict(
                "it has failed over to here, and its failover may have been cancelled", decided=False
            )
        try:
            epoch = self._standing.target(record)
        except SecondSiteError as error:
            role, current = error.attributes.get("role"), error.attributes.get("current")
            if error.code == StaleEpochError.code and isinstance(current, int):
                if role == Role.ACTIVE and current > record.epoch:
                    return Verdict("the other side runs it", superseded=Epoch(current))
                return Verdict(
                    f"the other side is {role} under epoch {current}, not target under {record.epoch}"
                )
            return Verdict(f"the target does not confirm it ({error.message})", decided=False)
        if epoch == record.epoch:
            return Verdict("the target confirmed it", confirmed=True)
        return Verdict(
            f"the target is at epoch {epoch}, this side at {record.epoch}: waiting for the order to go on"
        )

    def _ask_service(self) -> Mapping[str, Mapping[str, Any]] | None:
        try:
            return self._standing.service()
        except SecondSiteError as error:
            log.debug("the service does not say who may run what", error=error.to_dict())
            return None

    def _service_says(
        self, record: ItemRecord, before: Verdict, known: Mapping[str, Mapping[str, Any]] | None
    ) -> Verdict:
        if known is None:
            return Verdict(f"{before.reason}; the service does not answer")
        entry = known.get(record.item)
        if entry is None:
            return Verdict(f"{before.reason}; the service does not know it")
        epoch, ours = int(entry.get("epoch") or 0), entry.get("source") == self._node
        if ours and epoch == record.epoch:
            return Verdict("the service confirmed it", confirmed=True)
        if not ours and epoch > record.epoch:
            return Verdict("the service says that another side runs it", superseded=Epoch(epoch))
        return Verdict(f"{before.reason}; the service is at epoch {epoch}, this side at {record.epoch}")

    def _follow(self, record: ItemRecord, asked: ItemRecord, verdict: Verdict) -> None:
        if not _is_held(record) or record.epoch != asked.epoch or record.held is None:
            return  # an order came between
        if verdict.superseded is not None and record.role is Role.SOURCE:
            self._fence.demote(record.item, verdict.superseded)
        elif verdict.confirmed:
            log.info("confirmed", item=record.item, name=record.name, by=verdict.reason)
            # What has failed over is to run: its autostart was the other host's to know.
            wanted = record.autostart or record.role is Role.ACTIVE
            self._let_go(record, start=record.runs and wanted)
        elif record.held.reason != verdict.reason:
            log.warning("held", item=record.item, name=record.name, reason=verdict.reason)
            self._items.change(record.item, held=replace(record.held, reason=verdict.reason))

    def _let_go(self, record: ItemRecord, *, start: bool) -> None:
        """Start what is to run, then forget that it was held: cut between, it is held and asked about again."""
        assert record.held is not None
        power = self._fabric.power(record.vm)
        if (power is PowerState.OFF and start) or (power is PowerState.PAUSED and record.held.suspended):
            self._fabric.start(record.vm)
        self._items.change(record.item, held=None)
        if record.role is Role.SOURCE:
            self._replicators.start(record.item)


def _is_held(record: ItemRecord) -> bool:
    return record.role in GATED and record.held is not None
