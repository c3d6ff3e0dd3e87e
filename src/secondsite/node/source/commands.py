"""The service's commands to the source's side. Each may be repeated at any time; each ends in an observed fact."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import structlog

from secondsite.blocks import DigestTable
from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    OperationRefusedError,
    SecondSiteError,
    StaleEpochError,
    TrackingLostError,
)
from secondsite.fabric.port import Fabric, PowerState
from secondsite.model.ids import Epoch, ItemId, NodeId, parse_disk_key
from secondsite.model.manifest import Consistency, Manifest, format_time
from secondsite.model.policy import Policy
from secondsite.node.autostart import give_back_autostart, look_at
from secondsite.node.executor import Command, Handler, Progress
from secondsite.node.images import old_disks
from secondsite.node.records import Acked, ItemRecord, ItemStore, Peer, Role, require_role
from secondsite.node.source.fence import LOCK_REASON, Fence
from secondsite.node.source.replicator import Replicators
from secondsite.node.source.unprotected import other_disks
from secondsite.ship.kerberos import parse_principal

NOTICED_S: Final = 2.0
"""libvirt tells of the end of a QEMU some time after its calls began to fail."""
SHUTDOWNS_MAX: Final = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SourceCommands:
    """Handlers by kind; see docs/design/architecture.md for arguments and results."""

    items: ItemStore
    replicators: Replicators
    fabric: Fabric

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by command kind."""
        return {
            "source.start": self.start,
            "source.policy": self.policy,
            "source.pause": self.pause,
            "source.resume": self.resume,
            "source.resync": self.resync,
            "source.prepare": self.prepare,
            "source.release": self.release,
            "source.demote": self.demote,
            "source.stop": self.stop,
        }

    def start(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Begin to replicate: from nothing, or (resume) from the point that the failover left."""
        item, args = _item(command), command.args
        record = self.items.find(item)
        if args.get("resume"):
            self._resume(command, item)
        elif record is None:
            self._begin(command, item)
        else:
            require_role(record, Role.SOURCE)
        look_at(self.items, self.fabric, self.items.get(item))
        self.replicators.start(item)
        return {}

    def _begin(self, command: Command, item: ItemId) -> None:
        args = command.args
        vm = self.fabric.find(str(args["vm"]))
        wanted = [parse_disk_key(key) for key in args["disks"]]
        sizes = {disk.key: disk.size for disk in vm.replicable_disks}
        missing = sorted(set(wanted) - set(sizes))
        if not vm.protectable or missing:
            problems = [problem.message for problem in vm.problems if problem.forbids]
            raise OperationRefusedError(
                f"{vm.name} cannot be protected: {'; '.join(problems) or f'no usable disk {missing}'}",
                hint="secondsite item protectable shows what stands in the way",
                vm=vm.name,
            )
        record = ItemRecord(
            item=item,
            name=str(args["name"]),
            epoch=command.epoch,
            role=Role.SOURCE,
            digest_key=str(args["digest_key"]),
            policy=Policy(**args["policy"]),
            disks=tuple(wanted),
            vm=vm.uuid,
            others=other_disks(vm, wanted),
            peer=_peer(args),
            start_at=_start_at(args),
            seeded=bool(args.get("seeded")),
        )
        folder = self.items.folder(item) / "digests"
        folder.mkdir(parents=True, exist_ok=True)
        for disk in wanted:
            path = folder / f"{disk}.tbl"
            path.unlink(missing_ok=True)  # of a start that a crash cut; nothing was shipped yet
            DigestTable.create(path, sizes[disk], record.key).close()
        self.items.put(record)

    def _resume(self, command: Command, item: ItemId) -> None:
        record = self.items.get(item)
        if record.role is Role.SOURCE:
            return
        require_role(record, Role.ACTIVE)
        failover = record.failover
        if failover is None or not failover.standalone:
            raise ConflictError(f"the failover of {record.name} is not committed", hint="commit it first")
        manifest = Manifest.from_bytes((self.items.folder(item) / "manifest.json").read_bytes())
        acked = Acked(failover.sequence, failover.digest, format_time(manifest.time), failover.checkpoint)
        try:
            self._also_if_qemu_dies(
                record.vm, lambda: self.replicators.adopt_checkpoint(record, failover.checkpoint)
            )
        except TrackingLostError as error:
            # The replica's QEMU was killed meanwhile: the first cycle finds what changed by compare.
            log.warning("the replica's bitmap is lost, comparing", item=item, reason=error.message)
            self.items.count(item, "tracking_lost")
            self.replicators.forget_checkpoints(record)
            acked = replace(acked, checkpoint="")
        self.items.change(
            item,
            role=Role.SOURCE,
            peer=_peer(command.args),
            policy=Policy(**command.args["policy"]),
            acked=acked,
            others=None,  # of this side's machine, which is looked at now
            failover=None,
            ran=False,
            diverged=False,
            held=None,
            paused=False,
        )

    def policy(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Take a changed policy; the next cycle follows it."""
        item = _item(command)
        self.items.change(item, policy=Policy(**command.args["policy"]))
        self.replicators.wake(item)
        return {}

    def pause(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Run no cycles; what the guest changes is tracked on. A cycle that runs is given up."""
        item = _item(command)
        require_role(self.items.get(item), Role.SOURCE)
        self.items.change(item, paused=True)
        self.replicators.stop(item)
        return {}

    def resume(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Go on from the last acknowledged point, at once."""
        item = _item(command)
        require_role(self.items.get(item), Role.SOURCE)
        self.items.change(item, paused=False)
        self.replicators.start(item)
        self.replicators.wake(item)
        return {}

    def resync(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Compare whole disks with what the target holds, at once, whatever the tracking says."""
        item = _item(command)
        require_role(self.items.get(item), Role.SOURCE)
        self.replicators.stop(item)
        record = self.items.get(item)
        if record.acked is not None:  # else the initial replication compares anyway
            self.items.change(item, acked=replace(record.acked, checkpoint=""), compare=True)
        self.replicators.start(item)
        return {}

    def prepare(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Shut the guest down, seal what it wrote last, lock the machine."""
        item = _item(command)
        record = self.items.get(item)
        require_role(record, Role.SOURCE, Role.PREPARING, Role.PREPARED)
        # Prepared once is not prepared for ever: somebody may have started the machine since.
        if record.role is not Role.PREPARED or not self._is_off_and_locked(record.vm):
            ran = self._runs(record.vm) or (record.role is not Role.SOURCE and record.ran)
            # The service orders it under this epoch: that confirms it, if it was held.
            self.items.change(item, role=Role.PREPARING, ran=ran, marks={}, held=None)
            progress(0.1, "waiting for the cycle that runs")
            self.replicators.stop(item)
            self._shut_down_and_lock(record.vm, float(command.args.get("shutdown_timeout_s", 120)), progress)
            progress(0.5, "shipping the last changes")
            self.replicators.run_once(item, Consistency.PLANNED, progress)
            if not self._is_off_and_locked(record.vm):
                raise ConflictError(
                    f"{record.name} was started while its last changes were shipped",
                    hint="find out who starts it (a cluster manager?), then fail over again",
                    item=item,
                )
            old = old_disks(self.fabric.find(record.vm), record.disks)
            self.items.change(
                item, role=Role.PREPARED, images=old.images, formats=old.formats, marks=old.marks()
            )
        acked = self.items.get(item).acked
        assert acked is not None
        return {"sequence": acked.sequence, "digest": acked.digest, "time": acked.time}

    def release(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Be the source again after a roll back or a cancelled failover: unlock, start the guest if it ran, replicate on
        (under a raised epoch if the service says so) from the last acknowledged point.
        """
        item, args = _item(command), command.args
        record = self.items.get(item)
        require_role(record, Role.SOURCE, Role.PREPARING, Role.PREPARED, Role.STANDBY)
        ordered = Epoch(max(command.epoch, int(args.get("epoch") or 0)))
        if record.role is Role.STANDBY and ordered <= record.epoch:
            raise StaleEpochError(
                f"{record.name} stepped down for epoch {record.epoch}; it is not given back by epoch {ordered}",
                item=item,
                epoch=ordered,
                current=record.epoch,
            )
        self.replicators.stop(item)  # its connection speaks for the old epoch
        self.fabric.unlock_power(record.vm)
        # The source again, and replicated, also if it cannot be started: whoever starts it later is protected.
        self.items.change(
            item,
            role=Role.SOURCE,
            epoch=Epoch(max(record.epoch, ordered)),
            images={},
            marks={},
            diverged=False,
            held=None,
            paused=False,
        )
        self.replicators.start(item)
        if record.ran or args.get("start"):
            self.fabric.start(record.vm)
            self.items.change(item, ran=False)
        return {}

    def demote(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Step down: another side has the item now."""
        fence = Fence(self.items, self.replicators, self.fabric)
        return fence.demote(_item(command), Epoch(int(command.args["new_epoch"])))

    def stop(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Forget the item; the machine stays as it is, without our checkpoints."""
        item = _item(command)
        if self.items.forget_damaged(item):
            return {}
        record = self.items.find(item)
        if record is None:
            return {}
        require_role(record, Role.SOURCE, Role.PREPARING, Role.PREPARED)
        self.replicators.stop(item)
        self._also_if_qemu_dies(record.vm, lambda: self.replicators.forget_checkpoints(record))
        if record.role is not Role.SOURCE:
            self.fabric.unlock_power(record.vm)
        give_back_autostart(self.fabric, self.items.get(item))
        self.items.remove(item)
        return {}

    def _also_if_qemu_dies(self, vm: str, act: Callable[[], None]) -> None:
        """Do it, and once more if the machine's QEMU died over it: then the machine is taken as it is, off."""
        try:
            act()
        except TrackingLostError:
            raise
        except SecondSiteError:
            end = time.monotonic() + NOTICED_S
            while self._runs(vm):
                if time.monotonic() >= end:
                    raise
                time.sleep(NOTICED_S / 20)
            act()

    def _runs(self, vm: str) -> bool:
        return self.fabric.power(vm) is not PowerState.OFF

    def _is_off_and_locked(self, vm: str) -> bool:
        return not self._runs(vm) and self.fabric.locked(vm) is not None

    def _shut_down_and_lock(self, vm: str, timeout_s: float, progress: Progress) -> None:
        """Observed: it is off, and was when it was locked. Locked before the last point is taken: nothing can be
        written after it. The lock forbids the next start, so one that slipped in before it is shut down again.
        """
        for _ in range(SHUTDOWNS_MAX):
            if self._runs(vm):
                progress(0.2, "shutting the guest down")
                if not self.fabric.shutdown(vm, timeout_s=timeout_s):
                    progress(0.4, "the guest did not shut down in time: cutting its power")
                    self.fabric.power_off(vm)
            self.fabric.lock_power(vm, LOCK_REASON)
            if not self._runs(vm):
                return
        raise ConflictError(f"{vm} is started again and again", hint="find out who starts it, then try again")


def _item(command: Command) -> ItemId:
    if command.item is None:
        raise InvalidInputError(f"{command.kind} names no item")
    return command.item


def _start_at(args: Mapping[str, Any]) -> str:
    text = args.get("start_at")
    if not text:
        return ""
    try:
        return format_time(datetime.fromisoformat(str(text)))
    except ValueError as error:
        raise InvalidInputError(f"not a time: {text!r}", hint="expected 2026-11-23T05:00:00Z") from error


def _peer(args: Mapping[str, Any]) -> Peer:
    target = args["target"]
    auth = target.get("auth", "certificate")
    if auth not in {"certificate", "kerberos"}:
        raise InvalidInputError(f"not a way to authenticate: {auth!r}"[:100], hint="certificate or kerberos")
    service = parse_principal(target.get("service")) if auth == "kerberos" else ""
    return Peer(NodeId(target["node"]), str(target["host"]), int(target["port"]), service)
