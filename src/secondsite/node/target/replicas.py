"""Machines made from points: a test failover's, and a failed-over one.

A replica is a machine whose disks are qcow2 overlays on a view of the journal, so it starts in seconds whatever its
size. Each step may be repeated; the record says how far it came. A failed-over replica carries a dirty bitmap from
before its first boot, so that the way back ships only what changed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from secondsite import durable
from secondsite.errors import (
    ConflictError,
    OperationRefusedError,
    OutOfSequenceError,
    SecondSiteError,
    StaleEpochError,
)
from secondsite.fabric.port import (
    CancelledError,
    DiskSource,
    Fabric,
    HypervisorError,
    Labels,
    NbdBacking,
    PowerState,
    ReplicaRole,
    ReplicaSpec,
    VmInfo,
)
from secondsite.journal import Journal
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, Sequence
from secondsite.model.manifest import Manifest
from secondsite.node.config import Folders
from secondsite.node.records import ItemRecord, ItemStore, Replica, Role, require_role
from secondsite.node.target.journals import Journals
from secondsite.node.target.views import Views

log = structlog.get_logger(__name__)

TEST_PIN = "test"
FAILOVER_PIN = "failover"


class Replicas:
    """Starts, tends and removes the machines that this node made from points."""

    def __init__(
        self, items: ItemStore, journals: Journals, views: Views, fabric: Fabric, folders: Folders
    ) -> None:
        self._items = items
        self._journals = journals
        self._views = views
        self._fabric = fabric
        self._folders = folders

    # -- test failover -----------------------------------------------------------------------------------

    def start_test(
        self, item: ItemId, sequence: Sequence | None, name: str, networks: Mapping[str, str | None]
    ) -> Replica:
        """Start a machine of its own from a point, beside everything else; None is the latest point."""
        record = self._items.get(item)
        require_role(record, Role.TARGET)
        if record.test is not None:
            if record.test.started:
                return record.test
            sequence = record.test.sequence  # a start that a crash cut: the same point again
            self.remove_test(item)
        journal = self._journals.get(item)
        # One look at the thousands of points, not one for each fact.
        point = journal.pin(_newest(journal) if sequence is None else sequence, TEST_PIN)
        manifest = point.manifest
        test = Replica("", name, manifest.sequence, point.digest, socket=self._views.new_name())
        self._items.change(item, test=test)
        try:
            vm = self._boot(record, manifest, test, ReplicaRole.TEST, record.epoch, networks)
        except BaseException:
            self.remove_test(item)
            raise
        test = replace(test, vm=vm, started=True)
        self._items.change(item, test=test)
        return test

    def remove_test(self, item: ItemId) -> None:
        """Remove the test's machine, its disks, its view and its pin. Idempotent."""
        record = self._items.get(item)
        self._remove_machines(item, ReplicaRole.TEST)
        if record.test is not None:
            self._views.end(record.test.socket)
        self._remove_overlays(record, ReplicaRole.TEST)
        if self._journals.exists(item):
            self._journals.get(item).unpin(TEST_PIN)
        self._items.change(item, test=None)

    # -- failover ----------------------------------------------------------------------------------------

    def fail_over(
        self,
        item: ItemId,
        sequence: Sequence | None,
        digest: Digest | None,
        new_epoch: Epoch,
        name: str,
        networks: Mapping[str, str | None],
    ) -> Replica:
        """Take the item over: raise the epoch, then start its machine here from the point."""
        record = self._items.get(item)
        require_role(record, Role.TARGET, Role.ACTIVE)
        if record.role is Role.ACTIVE and new_epoch > record.epoch:
            raise ConflictError(
                f"{record.name} has failed over here under epoch {record.epoch}",
                hint="that failover is to be abandoned before another begins",
                item=item,
            )
        if new_epoch < record.epoch or (record.role is Role.TARGET and new_epoch == record.epoch):
            # Role and epoch are written together, so no first run left this: it was abandoned, and is late.
            raise StaleEpochError(
                f"a failover of {record.name} to epoch {new_epoch} comes after epoch {record.epoch}",
                item=item,
                epoch=new_epoch,
                current=record.epoch,
            )
        begun = record.failover if record.role is Role.ACTIVE and record.epoch == new_epoch else None
        if begun is not None and begun.started:
            return begun
        journal = self._journals.get(item)
        if begun is not None:
            sequence = begun.sequence
        else:
            journal.unpin(FAILOVER_PIN)  # of a try that was cut before its role was durable, at another point
        # What the pin returns, for before it a thinning may put another point with another digest in its place.
        point = journal.pin(_newest(journal) if sequence is None else sequence, FAILOVER_PIN)
        manifest, found = point.manifest, point.digest
        # A point that took others in when they were thinned away is the same point: it names the digest that it had.
        if digest is not None and digest not in {found, *manifest.replaces}:
            if begun is None:
                journal.unpin(FAILOVER_PIN)
            raise OutOfSequenceError(
                f"point {manifest.sequence} of {record.name} is not the one that the source sealed",
                item=item,
                expected=digest,
                found=found,
            )
        journal.raise_epoch(new_epoch)
        failover = begun or Replica(
            "",
            name,
            manifest.sequence,
            found,
            socket=self._views.new_name(),
            checkpoint=f"ss-{uuid.uuid4().hex[:12]}",
        )
        # The role is durable before anything boots: from here on this side is the writable one.
        record = self._items.change(item, role=Role.ACTIVE, epoch=new_epoch, failover=failover, held=None)
        vm = self._boot(record, manifest, failover, ReplicaRole.REPLICA, new_epoch, networks)
        failover = replace(failover, vm=vm, started=True)
        self._items.change(item, failover=failover, vm=vm)
        return failover

    def abandon(self, item: ItemId, epoch: Epoch, next_epoch: Epoch | None = None) -> None:
        """Undo the failover to `epoch`: remove its machine with what it wrote, be a target again under `next_epoch`
        (without it, under `epoch`). Whoever still carries an epoch up to that one is refused from then on.
        """
        record = self._items.find(item)
        if record is None:
            # Nothing is known of it any more; what runs of it is found by its labels.
            self._remove_machines(item, ReplicaRole.REPLICA)
            return
        require_role(record, Role.TARGET, Role.ACTIVE)
        following = Epoch(max(epoch, next_epoch or epoch))
        # Before anything is removed: a late one must not meet a later failover, nor the committed machine.
        if following < record.epoch or (record.role is Role.ACTIVE and epoch < record.epoch):
            raise StaleEpochError(
                f"a failover of {record.name} to epoch {epoch} is given up, but it is at {record.epoch}",
                item=item,
                epoch=epoch,
                current=record.epoch,
            )
        journal = self._journals.get(item)
        if record.failover is not None:
            self._remove_machines(item, ReplicaRole.REPLICA)
            self._views.end(record.failover.socket)
            self._remove_overlays(record, ReplicaRole.REPLICA)
        journal.raise_epoch(following)
        journal.unpin(FAILOVER_PIN)
        self._items.change(
            item,
            role=Role.TARGET,
            epoch=following,
            failover=None,
            vm="",
            held=None,
            runs=False,
            autostart=False,
        )

    def settle(
        self, item: ItemId, progress: Callable[[int, int], None], cancelled: Callable[[], bool]
    ) -> None:
        """Make a failed-over machine independent of the journal while it runs, and keep what reverse needs.

        Afterwards the machine's disks stand alone, and the digest tables and the manifest of the point that it
        started from lie in the item's folder. Idempotent; goes on where it stopped.
        """
        record = self._items.get(item)
        failover = record.failover
        if failover is None or not failover.started or failover.standalone:
            return
        journal = self._journals.get(item)
        folder = self._items.folder(item)
        (folder / "digests").mkdir(exist_ok=True)
        with journal.view(failover.sequence, purpose="digests") as view:
            for disk in view.disks:
                path = folder / "digests" / f"{disk}.tbl"
                path.unlink(missing_ok=True)
                journal.digests_at(view, disk, path)
            durable.write_atomic(folder / "manifest.json", view.manifest.to_bytes())
        try:
            self._fabric.make_standalone(failover.vm, progress=progress, cancelled=cancelled)
        except SecondSiteError as error:
            if isinstance(error, CancelledError) or self._views.alive(failover.socket):
                raise
            # Its view died. Whoever waits for this holds the upkeep up that would have it served again.
            self.tend(item)
            self._fabric.make_standalone(failover.vm, progress=progress, cancelled=cancelled)
        if self._items.get(item).failover != failover:
            return  # abandoned meanwhile: nothing to say of it any more
        self._items.change(item, failover=replace(failover, standalone=True))
        self.let_go(item)

    def is_off(self, item: ItemId) -> bool:
        """Whether the failed-over machine does not run, if there is one."""
        record = self._items.find(item)
        failover = None if record is None else record.failover
        return failover is not None and failover.started and self._fabric.power(failover.vm) is PowerState.OFF

    def let_go(self, item: ItemId) -> None:
        """End the view and the pin of a failed-over machine that stands alone. Idempotent: a crash may come before."""
        record = self._items.get(item)
        if record.failover is not None and record.failover.standalone:
            self._views.end(record.failover.socket)
            if self._journals.exists(item):
                self._journals.get(item).unpin(FAILOVER_PIN)

    # -- both --------------------------------------------------------------------------------------------

    def tend(self, item: ItemId) -> None:
        """Have the views of running replicas served again if they died, and resume who paused for it."""
        record = self._items.find(item)
        if record is None:
            return
        for replica in (record.test, record.failover):
            if replica is None or not replica.started or replica.standalone:
                continue
            if not self._views.alive(replica.socket):
                log.warning("a view died, starting it again", item=item, sequence=replica.sequence)
                self._items.count(item, "views_restarted")
                self._views.ensure(replica.socket, self._folders.journal(item), replica.sequence)
            self._fabric.resume_if_io_error(replica.vm)

    def _boot(
        self,
        record: ItemRecord,
        manifest: Manifest,
        replica: Replica,
        role: ReplicaRole,
        epoch: Epoch,
        networks: Mapping[str, str | None],
    ) -> str:
        """Start the machine, and once more if a process died under it: that is no reason to give a failover up."""
        try:
            return self._boot_once(record, manifest, replica, role, epoch, networks)
        except SecondSiteError as error:
            if self._views.alive(replica.socket) and not isinstance(error, HypervisorError):
                raise
            log.warning("a replica did not start, once more", item=record.item, error=error.to_dict())
            return self._boot_once(record, manifest, replica, role, epoch, networks)

    def _boot_once(
        self,
        record: ItemRecord,
        manifest: Manifest,
        replica: Replica,
        role: ReplicaRole,
        epoch: Epoch,
        networks: Mapping[str, str | None],
    ) -> str:
        item = record.item
        for vm in self._machines(item, role):
            if vm.labels is not None and vm.labels.epoch == epoch:
                # A crash came between its start and our note of it; it may have served already.
                self._views.ensure(replica.socket, self._folders.journal(item), manifest.sequence)
                self._fabric.start(vm.uuid)
                return vm.uuid
        journal = self._journals.get(item)
        socket = self._views.ensure(
            replica.socket,
            self._folders.journal(item),
            manifest.sequence,
            partial(journal.prepare_view, manifest.sequence),
        )
        disks: dict[DiskKey, DiskSource] = {}
        self._folders.replicas(item).mkdir(parents=True, exist_ok=True)
        for disk, point in manifest.disks.items():
            path = self._overlay(record, role, epoch, disk)
            backing = NbdBacking(socket, disk)
            self._fabric.create_overlay(
                path, size=point.size, backing=backing, bitmap=replica.checkpoint or f"ss-{role.value}"
            )
            disks[disk] = DiskSource(path, backing)
        spec = ReplicaSpec(
            name=replica.name,
            definition=manifest.vm,
            disks=disks,
            networks=networks,
            labels=Labels(item, epoch, role),
            new_identity=role is ReplicaRole.TEST,
        )
        vm = self._fabric.define_replica(spec)
        self._fabric.start(vm.uuid)
        return vm.uuid

    def _overlay(self, record: ItemRecord, role: ReplicaRole, epoch: Epoch, disk: DiskKey) -> Path:
        return self._folders.replicas(record.item) / f"{role.value}-e{epoch}-{disk}.qcow2"

    def _machines(self, item: ItemId, role: ReplicaRole) -> list[VmInfo]:
        return [
            vm
            for vm in self._fabric.list_ours()
            if vm.labels is not None and vm.labels.item == item and vm.labels.role is role
        ]

    def _remove_machines(self, item: ItemId, role: ReplicaRole) -> None:
        for vm in self._machines(item, role):
            self._fabric.power_off(vm.uuid)
            self._fabric.undefine(vm.uuid, keep_disks=True)

    def _remove_overlays(self, record: ItemRecord, role: ReplicaRole) -> None:
        folder = self._folders.replicas(record.item)
        # Only this epoch's: an older epoch's images may be the base of the journal now.
        epoch = "*" if role is ReplicaRole.TEST else str(record.epoch)
        names = (f"{role.value}-e{epoch}-*.qcow2", f"*{durable.TEMPORARY_MARK}*")  # the second: cut by a kill
        self._fabric.delete_disks(sorted(path for name in names for path in folder.glob(name)))
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _newest(journal: Journal) -> Sequence:
    last = journal.status().last
    if last is None:
        raise OperationRefusedError(
            f"{journal.name} has no recovery point yet",
            hint="wait for the initial replication",
            item=journal.item,
        )
    return last.sequence
