"""One side: a node's records, journal, listener, cycle and commands as they are in production, on a simulated disk.

Not the product's here: threads (whoever drives the site calls what they would), the hypervisor (`FakeFabric`, `SimMachine`),
processes of views, qemu-nbd under an adopted image (a raw file beside it).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from secondsite.capture.fake_agent import FakeAgent
from secondsite.capture.quiesce import Quiescer
from secondsite.errors import SecondSiteError, StaleEpochError, TrackingLostError
from secondsite.fabric.fake import FakeFabric
from secondsite.fabric.port import PowerState
from secondsite.journal.base import Base, BaseSpec, RawBase
from secondsite.model.ids import CommandId, Digest, DiskKey, Epoch, ItemId, NodeId
from secondsite.model.manifest import Consistency, Manifest
from secondsite.node.config import Folders
from secondsite.node.executor import Command, Executor
from secondsite.node.records import ItemRecord, ItemStore, Role
from secondsite.node.source.commands import SourceCommands
from secondsite.node.source.fence import Fence
from secondsite.node.source.outcome import CycleOutcome
from secondsite.node.source.replicator import Adapters, Replicator
from secondsite.node.target.commands import TargetCommands
from secondsite.node.target.journals import Journals
from secondsite.node.target.receiver import JournalReceiver
from secondsite.node.target.replicas import Replicas
from secondsite.ship.backoff import QuickRetries
from secondsite.ship.client import Endpoint
from secondsite.ship.listener import make_router
from secondsite.ship.sender import Sender
from support.role_world import Answers, FakeViews
from support.simulator.disk import SimDisk
from support.simulator.machine import SimMachine
from support.simulator.wire import SimTrust

if TYPE_CHECKING:
    from support.simulator.world import World

ITEM = ItemId("0b6c7e9a-0000-4000-8000-00000000dddd")
NAME = "web"


def content_of(image: Path) -> Path:
    """Return the raw file that holds what an adopted image holds."""
    return image.with_name(image.name + ".raw")


class SimReceiver(JournalReceiver):
    """The real one; whoever judges learns what it has acknowledged."""

    sealed: Callable[[Manifest], None] = staticmethod(lambda _: None)
    """Called with each manifest that is acknowledged."""

    def seal(self, item: ItemId, peer: NodeId, epoch: Epoch, manifest: bytes) -> Digest:
        """See JournalReceiver."""
        digest = super().seal(item, peer, epoch, manifest)
        self.sealed(Manifest.from_bytes(manifest))
        return digest


class SimSender(Sender):
    """The real one, with parts that fit small disks."""

    part_size = 1 << 20

    def suggested_part_size(self) -> int:
        """See Sender."""
        return self.part_size


class _Stop:
    """An event that nobody waits for: time passes instead."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        return None

    def clear(self) -> None:
        return None

    def wait(self, timeout: float | None = None) -> bool:
        self._sleep(timeout or 0.0)
        return False


class SimReplicators:
    """`Replicators` without threads: `running` says what a thread would do."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.running = False

    def start(self, item: ItemId) -> None:
        record = self._site.items.get(item)
        self.running = not record.paused and record.held is None

    def stop(self, item: ItemId) -> None:
        self.running = False
        self._site.drop_replicator()

    def wake(self, item: ItemId) -> None:
        return None

    def run_once(self, item: ItemId, consistency: Consistency, report: Any) -> CycleOutcome:
        return self._site.replicator().run_once(consistency, report)

    def adopt_checkpoint(self, record: ItemRecord, checkpoint: str) -> None:
        if self._site.machine is None or checkpoint not in self._site.machine.capture.checkpoints:
            raise TrackingLostError(f"checkpoint {checkpoint} does not exist")

    def forget_checkpoints(self, record: ItemRecord) -> None:
        if self._site.machine is not None:
            self._site.machine.forget(set())


class SimSettler:
    """`Settler` without a thread: who waits does the work."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def start(self, item: ItemId) -> None:
        return None

    def cancel(self, item: ItemId) -> None:
        return None

    def join(self, item: ItemId) -> None:
        return None

    def wait(self, item: ItemId, report: Callable[[int, int], None]) -> None:
        self._replicas.settle(item, report, lambda: False)


class Site:
    """See the module's docstring. `machine`: the protected machine, where it is."""

    def __init__(self, world: World, letter: str) -> None:
        self.world = world
        self.letter = letter
        self.node = NodeId(f"node-{letter}")
        self.root = world.place / letter
        self.root.mkdir()
        self.folders = Folders(self.root / "state", self.root / "storage")
        self.folders.make()
        self.images = self.root / "images"
        self.images.mkdir()
        self.fabric = FakeFabric(f"host-{letter}")
        self.views = FakeViews(self.folders.run, self.fabric)
        self.agent = FakeAgent()
        self.machine: SimMachine | None = None
        self.disk = SimDisk(self.root, world.stream(f"disk {letter}"))
        self.skew_s = 0.0
        self.dead = False
        self.superseded: list[Epoch] = []
        self._orders = itertools.count(1)
        self._replicator: Replicator | None = None

    # -- the process ---------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """The enclosed code is this node's process."""
        with self.world.disks.on(self.disk):
            yield

    def boot(self) -> None:
        """A new process begins. It may be cut as well."""
        with self.running():
            self.items = ItemStore(self.folders.items)
            self.journals = Journals(self.folders.journal, self.open_base)
            self.receiver = SimReceiver(self.items, self.journals)
            self.receiver.sealed = partial(self.world.judge.acknowledged, self)
            self.replicators = SimReplicators(self)
            self.replicas = Replicas(
                self.items, self.journals, cast("Any", self.views), self.fabric, self.folders
            )
            source = SourceCommands(self.items, cast("Any", self.replicators), self.fabric)
            target = TargetCommands(
                self.items,
                self.journals,
                self.replicas,
                cast("Any", SimSettler(self.replicas)),
                self.fabric,
                self.folders,
                self.open_base,
                clock=self._adopting,
            )
            handlers = {**source.handlers(), **target.handlers()}
            self.executor = Executor(self.folders.commands, handlers, self.items, Answers())
            record = self.record
            if record is not None and record.role is Role.SOURCE:
                self.replicators.start(ITEM)
            if self.journals.exists(ITEM):
                self.journals.get(ITEM)
        self.dead = False
        self.world.network.listen(self.node, make_router(self.receiver), self.running, self.die)

    def die(self) -> None:
        """The process has ended."""
        self.dead = True
        self.world.network.hang_up(self.node)

    def restart_disk(self, *, power: bool) -> None:
        """The process ended; the files are as the next one finds them."""
        self.die()
        self.drop_replicator()
        self.journals.close()
        if power:
            for name in sorted(self.views.running):
                self.views.die(name)
            self.disk.cut_power()
        else:
            self.disk.kill()

    def clock(self) -> datetime:
        """This side's clock."""
        return self.world.time(self.skew_s)

    def _adopting(self) -> datetime:
        """The clock of an adoption, whose point is what the machine's disks hold."""
        time = self.clock()
        if self.machine is not None:
            self.world.judge.record.contents[time] = self.machine.now()
        return time

    def tend(self) -> None:
        """What the upkeep does each second: views that died are served again."""
        record = self.record
        if record is not None and record.failover is not None and record.role is Role.ACTIVE:
            with self.running(), suppress(SecondSiteError):  # the upkeep complains and tries again
                self.replicas.tend(ITEM)

    # -- what a node does ----------------------------------------------------------------------------------

    @property
    def record(self) -> ItemRecord | None:
        return self.items.find(ITEM)

    @property
    def role(self) -> Role | None:
        record = self.record
        return None if record is None else record.role

    def order(
        self, kind: str, epoch: int, args: Mapping[str, Any], identifier: str = ""
    ) -> Mapping[str, Any]:
        """Carry out an order of the service as the executor does, in the caller's thread."""
        name = identifier or f"{self.letter}:{next(self._orders)}:{kind}"
        command = Command(CommandId(name), kind, ITEM, Epoch(epoch), args)
        with self.running():
            return self.executor._handle(command)

    def cycle(self) -> CycleOutcome:
        """Run one cycle as the replicator's thread does."""
        with self.running():
            replicator = self.replicator()
            try:
                return replicator._once(Consistency.CRASH)
            except StaleEpochError as error:
                if replicator._is_superseded(error):
                    self._step_down()
                raise

    def _step_down(self) -> None:
        """The other side runs the machine: what the daemon does when a replicator says so."""
        self.replicators.running = False
        while self.superseded:
            epoch = self.superseded.pop()
            Fence(self.items, cast("Any", self.replicators), self.fabric).demote(ITEM, epoch)

    def replicator(self) -> Replicator:
        """Return the item's replicator, made anew after a restart."""
        if self._replicator is None:
            adapters = Adapters(
                capture=lambda _: cast("Any", self._machine()),
                sender=self._sender,
                definition=lambda record: self.fabric.definition(record.vm),
                adopt_checkpoint=lambda _record, _checkpoint: None,
                clock=self.clock,
                monotonic=self.world.monotonic,
                quiescer=lambda record: Quiescer(self.agent, self.items.folder(ITEM) / "frozen"),
                superseded=lambda _item, epoch: self.superseded.append(epoch),
            )
            self._replicator = Replicator(self.items, ITEM, adapters)
            self._replicator._stop = cast("threading.Event", _Stop(self.world.sleep))
        return self._replicator

    def drop_replicator(self) -> None:
        """Its thread ended."""
        if self._replicator is not None:
            self._replicator._drop_sender()
            self._replicator = None

    def _machine(self) -> SimMachine:
        assert self.machine is not None
        return self.machine

    def _sender(self, record: ItemRecord, stop: threading.Event) -> Sender:
        assert record.peer is not None
        world = self.world
        sender = SimSender(
            Endpoint(record.peer.host, record.peer.port, record.peer.node),
            SimTrust(self.node),
            ITEM,
            record.epoch,
            compression=record.policy.compression,
            connections=world.geometry.connections,
            cancelled=stop,
            retries=QuickRetries(attempts=3),
            monotonic=world.monotonic,
            sleep=world.sleep,
            uniform=world.stream("backoff").uniform,
        )
        sender.part_size = world.geometry.part_size
        return sender

    def open_base(self, spec: BaseSpec, writable: bool) -> Base:
        """A raw file, or the raw file that stands in for an image."""
        path = spec.path if spec.kind == "raw" else content_of(spec.path)
        return RawBase(path, spec.size, writable=writable, grown_from=spec.grown_from)

    # -- the machine ---------------------------------------------------------------------------------------

    def add_machine(self, sizes: Mapping[DiskKey, int]) -> str:
        """Define the protected machine here, running; return its id."""
        paths = {disk: self.images / f"{disk}.qcow2" for disk in sizes}
        vm = self.fabric.add_vm(NAME, {disk: (paths[disk], size) for disk, size in sizes.items()})
        self.machine = self.make_machine(sizes, paths, vm.uuid)
        for path in paths.values():
            self.disk.note_durable(path)
        return vm.uuid

    def make_machine(
        self, sizes: Mapping[DiskKey, int], paths: Mapping[DiskKey, Path], vm: str
    ) -> SimMachine:
        """Return a machine whose definition the fabric has."""
        return SimMachine(
            sizes, paths, self.world.judge.record, self.clock, lambda: self.fabric.definition(vm)
        )

    def machine_runs(self) -> bool:
        """Whether the guest can write."""
        record = None if self.dead else self.record
        vm = "" if record is None else record.vm
        return any(one.uuid == vm and one.power is PowerState.RUNNING for one in self.fabric.inventory().vms)

    def close(self) -> None:
        """End the process in order, for good."""
        self.drop_replicator()
        self.journals.close()
        self.executor.close()
        self.disk.close()
