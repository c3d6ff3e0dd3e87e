"""One side of an item's role changes: the node's real commands, records and journal over a fake fabric.

`SourceSide` has a machine and replicates by a fake; `TargetSide` has a journal with three points and fake view processes.
Commands go through a real executor, or (`act`) straight to their handler, so that a kill can cut them. After a kill
`reopen` leaves what a new process would find: the files, and the machines in the fabric.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

from secondsite import durable
from secondsite.errors import SecondSiteError
from secondsite.fabric.fake import FakeFabric, FakeImage
from secondsite.fabric.port import PowerState, VmInfo
from secondsite.journal.base import OpenBase, open_raw_base
from secondsite.model.ids import CommandId, Digest, DiskKey, Epoch, NodeId, Sequence
from secondsite.model.manifest import Consistency, Manifest
from secondsite.model.policy import Policy
from secondsite.node.config import Folders
from secondsite.node.executor import Command, Executor, Handler
from secondsite.node.records import Acked, ItemRecord, ItemStore, Peer, Role
from secondsite.node.source.commands import SourceCommands
from secondsite.node.target.commands import TargetCommands
from secondsite.node.target.journals import Journals
from secondsite.node.target.replicas import Replicas
from secondsite.node.target.settler import Settler
from support.journals import ITEM, KEY, VDA, VDB, Model

WAIT_S = 10.0
QCOW2_MAGIC = b"QFI\xfb"


class Killed(BaseException):
    """The process ends here: nothing after this is run, and nobody catches it."""


CHANGES: Final = (
    "start",
    "power_off",
    "suspend",
    "set_autostart",
    "lock_power",
    "unlock_power",
    "create_overlay",
    "define_replica",
    "undefine",
    "delete_disks",
)


class Steps:
    """Counts the changes that an order makes; `at` is the one before which the process ends."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.done = 0

    def take(self) -> None:
        """One more change is about to be made, or was just made."""
        self.done += 1
        if self.at is not None and self.done > self.at:
            raise Killed  # also what is done while this unwinds: nobody lives to do it


@contextmanager
def killed_at(side: Side, at: int | None) -> Iterator[Steps]:
    """Kill the side before its step `at` (never if None): each change of a file, of a machine and of a view is one."""
    steps = Steps(at)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **fields: Any) -> Any:
            steps.take()
            return real(*args, **fields)

        return call

    with ExitStack() as stack:
        for owner, names in (
            (durable, ("write_atomic", "rename_durable")),
            (side.fabric, CHANGES),
            (side.views, ("ensure", "end")),
        ):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name))))
        yield steps


class Answers:
    """What the service was told. With `cancel` it asks whatever runs to stop."""

    def __init__(self) -> None:
        self.results: dict[str, Mapping[str, Any]] = {}
        self.order: list[str] = []
        self.cancel = False
        self._told = threading.Condition()

    def result(self, command: CommandId, outcome: Mapping[str, Any]) -> None:
        with self._told:
            self.results[command] = outcome
            self.order.append(command)
            self._told.notify_all()

    def progress(self, command: CommandId, fields: Mapping[str, Any]) -> bool:
        return self.cancel

    def wait(self, command: str, count: int = 1) -> Mapping[str, Any]:
        """Return the outcome of a command when the service has heard it `count` times."""
        with self._told:
            assert self._told.wait_for(lambda: self.order.count(command) >= count, WAIT_S), (
                f"{command}: no answer"
            )
            return self.results[command]


class Replicating:
    """Stands in for the replicators. `during` is what the world does while a last cycle runs."""

    def __init__(self, items: ItemStore) -> None:
        self._items = items
        self.running = False
        self.cycles = 0
        self.forgotten = 0
        self.during: Callable[[], object] = lambda: None
        self.adopting: Callable[[], object] = lambda: None

    def start(self, item: object) -> None:
        self.running = True

    def stop(self, item: object) -> None:
        self.running = False

    def wake(self, item: object) -> None:
        return None

    def run_once(self, item: object, consistency: Consistency, report: object) -> None:
        assert not self.running
        assert consistency is Consistency.PLANNED
        self.during()
        self.cycles += 1
        acked = Acked(
            Sequence(6 + self.cycles), Digest(f"{self.cycles:064x}"), "2026-01-01T00:00:00Z", "ss-last"
        )
        self._items.change(ITEM, acked=acked)

    def adopt_checkpoint(self, record: ItemRecord, checkpoint: str) -> None:
        self.adopting()

    def forget_checkpoints(self, record: ItemRecord) -> None:
        self.forgotten += 1


class FakeViews:
    """View processes without processes. `ending` is called when one is about to end."""

    def __init__(self, run: Path, fabric: FakeFabric) -> None:
        self._run, self._fabric = run, fabric
        self.running: set[str] = set()
        self.ending: Callable[[], object] = lambda: None
        self._names = itertools.count(1)

    def new_name(self) -> str:
        return f"v{next(self._names)}"

    def ensure(
        self, name: str, journal: Path, sequence: Sequence, prepare: Callable[[Path], None] | None = None
    ) -> Path:
        if prepare is not None:
            with suppress(SecondSiteError, OSError):
                prepare(self._run / f"{name}.prepared")
        self.running.add(name)
        self._fabric.serve(self._socket(name))
        return self._socket(name)

    def alive(self, name: str) -> bool:
        return name in self.running

    def end(self, name: str) -> None:
        if name:
            self.ending()
            self.die(name)

    def die(self, name: str) -> None:
        """The process is gone: who reads from it pauses."""
        self.running.discard(name)
        self._fabric.unserve(self._socket(name))

    def _socket(self, name: str) -> Path:
        return self._run / f"{name}.sock"


class Side:
    """What both sides have: folders, records, a fabric, and commands in an executor."""

    def __init__(self, root: Path) -> None:
        self.folders = Folders(root / "state", root / "storage")
        self.folders.state.mkdir(parents=True)
        self.folders.storage.mkdir()
        self.folders.make()
        self.root = root
        self.fabric = FakeFabric()
        self._ids = itertools.count(1)

    def _open(self, open_base: OpenBase) -> None:
        self.items = ItemStore(self.folders.items)
        self.journals = Journals(self.folders.journal, open_base)
        self.replicators = Replicating(self.items)
        self.views = FakeViews(self.folders.run, self.fabric)
        self.replicas = Replicas(
            self.items, self.journals, cast("Any", self.views), self.fabric, self.folders
        )
        self.settler = Settler(self.items, self.replicas)
        self.source = SourceCommands(self.items, cast("Any", self.replicators), self.fabric)
        self.target = TargetCommands(
            self.items, self.journals, self.replicas, self.settler, self.fabric, self.folders, open_base
        )
        self.handlers: dict[str, Handler] = {**self.source.handlers(), **self.target.handlers()}
        self.answers = Answers()
        self.executor = Executor(self.folders.commands, self.handlers, self.items, self.answers)

    def command(self, kind: str, epoch: int = 1, identifier: str = "", /, **args: Any) -> Command:
        identifier = identifier or f"job:{next(self._ids)}:{kind}"
        return Command(CommandId(identifier), kind, ITEM, Epoch(epoch), args)

    def run(self, kind: str, epoch: int = 1, /, **args: Any) -> Mapping[str, Any]:
        """Give an order and return its outcome: {"result": ...} or {"error": ...}."""
        return self.submit(self.command(kind, epoch, **args))

    def submit(self, command: Command) -> Mapping[str, Any]:
        """Deliver an order, once more if it was delivered before, and return its outcome."""
        count = self.answers.order.count(command.id)
        self.executor.submit(command)
        return self.answers.wait(command.id, count + 1)

    def done(self, kind: str, epoch: int = 1, /, **args: Any) -> Mapping[str, Any]:
        """Give an order that must succeed and return its result."""
        outcome = self.run(kind, epoch, **args)
        assert "error" not in outcome, outcome
        return cast("Mapping[str, Any]", outcome["result"])

    def refused(self, kind: str, epoch: int = 1, /, **args: Any) -> str:
        """Give an order that must fail and return the error's code."""
        outcome = self.run(kind, epoch, **args)
        assert "error" in outcome, outcome
        return str(outcome["error"]["code"])

    def act(self, kind: str, epoch: int = 1, /, **args: Any) -> Mapping[str, Any]:
        """Run an order's handler in the caller's thread: what it raises is the caller's, also `Killed`."""
        command = self.command(kind, epoch, **args)
        return self.handlers[kind](command, lambda *_args, **_fields: None)

    @property
    def record(self) -> ItemRecord:
        return self.items.get(ITEM)

    def close(self) -> None:
        """End what runs, also what waits for ever: it is cancelled."""
        self.answers.cancel = True
        self.settler.close()
        self.executor.close()
        self.journals.close()


class SourceSide(Side):
    """A machine `web` that is replicated under epoch 1. `local`: disks of it that are not."""

    def __init__(
        self,
        root: Path,
        *,
        disks: Mapping[DiskKey, Path] | None = None,
        local: Mapping[DiskKey, Path] | None = None,
        power: PowerState = PowerState.RUNNING,
        autostart: bool = False,
        open_base: OpenBase = open_raw_base,
    ) -> None:
        super().__init__(root)
        self.disks = disks or {VDA: root / "vda.qcow2"}
        images = {**self.disks, **(local or {})}
        kept = {path: path.read_bytes() for path in images.values() if path.exists()}
        sized = {disk: (path, 1 << 20) for disk, path in images.items()}
        self.vm = self.fabric.add_vm("web", sized, power=power, autostart=autostart).uuid
        for path, content in kept.items():
            path.write_bytes(content)
        self._open_base = open_base
        self._open(open_base)
        self.items.put(
            ItemRecord(
                ITEM,
                "web",
                Epoch(1),
                Role.SOURCE,
                KEY.hex(),
                Policy(resync_window="always"),
                tuple(self.disks),
                vm=self.vm,
                peer=Peer(NodeId("other")),
            )
        )
        self.replicators.running = True

    def reopen(self) -> None:
        """The node was killed and runs again."""
        self.close()
        self._open(self._open_base)

    @property
    def power(self) -> PowerState:
        return self.fabric.power(self.vm)

    @property
    def locked(self) -> bool:
        return self.fabric.locked(self.vm) is not None

    def start_by_hand(self) -> None:
        """Somebody takes our lock off the machine and starts it."""
        self.fabric.unlock_power(self.vm)
        self.fabric.start(self.vm)

    def stand_by(self) -> None:
        """The other side took over under epoch 2."""
        self.done("source.prepare")
        self.done("source.demote", 2, new_epoch=2)


class _WebModel(Model):
    """A source whose manifests carry a machine that the fake fabric can define."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        fabric = FakeFabric()
        vm = fabric.add_vm("web", {disk: (folder / f"{disk}.qcow2", self.sizes[disk]) for disk in (VDA, VDB)})
        self.uuid = vm.uuid
        self.definition = fabric.definition(vm.uuid)

    def manifest(self, *args: Any, **fields: Any) -> Manifest:
        return replace(super().manifest(*args, **fields), vm=self.definition)


class TargetSide(Side):
    """A journal of the machine `web` with the points 1 to 3, under epoch 1."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.model = _WebModel(root / "source")
        with self.model.create(self.folders.journal(ITEM)) as journal:
            self.model.replicate_initially(journal, {VDA: [(0, b"A" * 16384)], VDB: [(20480, b"." * 2048)]})
            self.model.seal(journal, {})
            for number in (2, 3):
                self.model.seal(journal, {VDA: [(number * 4096, bytes([64 + number]) * 4096)]})
        self._open(open_raw_base)
        self.items.put(
            ItemRecord(
                ITEM,
                "web",
                Epoch(1),
                Role.TARGET,
                KEY.hex(),
                Policy(resync_window="always"),
                (VDA, VDB),
                peer=Peer(NodeId("source")),
            )
        )

    def reopen(self) -> None:
        """The node was killed and runs again; views outlive it."""
        views = self.views
        self.close()
        self._open(open_raw_base)
        self.views.running = views.running

    def failover(self, new_epoch: int = 2, identifier: str = "") -> Command:
        """The order of a planned failover to the last point."""
        return self.command(
            "target.failover",
            new_epoch - 1,
            identifier,
            sequence=self.model.sequence,
            digest=self.model.previous,
            new_epoch=new_epoch,
            name="web",
            networks={},
        )

    def fail_over(self, new_epoch: int = 2) -> Mapping[str, Any]:
        """Take the item over without settling: the machine still reads from its view."""
        command = self.failover(new_epoch)
        failover = self.replicas.fail_over(
            ITEM, command.args["sequence"], command.args["digest"], Epoch(new_epoch), "web", {}
        )
        return {"vm": failover.vm, "sequence": failover.sequence}

    def settle(self) -> None:
        """Make the failed-over machine stand alone, in the caller's thread."""
        self.replicas.settle(ITEM, lambda _done, _total: None, lambda: False)

    @property
    def machines(self) -> list[VmInfo]:
        return list(self.fabric.inventory().vms)


def with_real_images(read: Callable[[Path], FakeImage]) -> Callable[[Path], FakeImage]:
    """Return `FakeImage.read` for fabrics whose machines have real qcow2 files: those are taken for images of 1 MiB."""

    def take(path: Path) -> FakeImage:
        if path.exists() and path.read_bytes()[:4] == QCOW2_MAGIC:
            return FakeImage(1 << 20)
        return read(path)

    return take
