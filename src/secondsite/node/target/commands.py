"""The service's commands to the target's side. Each may be repeated at any time; each ends in an observed fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secondsite.errors import InvalidInputError, NotFoundError, OperationRefusedError
from secondsite.fabric.port import Fabric
from secondsite.journal import Journal
from secondsite.journal.base import OpenBase
from secondsite.model.ids import (
    Digest,
    DiskKey,
    Epoch,
    ItemId,
    NodeId,
    Sequence,
    parse_digest,
    parse_disk_key,
)
from secondsite.model.manifest import format_time
from secondsite.model.policy import Policy
from secondsite.nbd.image import stop_shared
from secondsite.node.autostart import give_back_autostart
from secondsite.node.config import Folders
from secondsite.node.executor import Command, Handler, Progress
from secondsite.node.records import ItemRecord, ItemStore, Peer, Replica, Role, require_role
from secondsite.node.target.adoption import Adoption
from secondsite.node.target.journals import Journals
from secondsite.node.target.replicas import Replicas
from secondsite.node.target.seeding import Seeding
from secondsite.node.target.settler import Settler
from secondsite.ship.kerberos import parse_principal


@dataclass(frozen=True, slots=True)
class TargetCommands:
    """Handlers by kind; see docs/design/architecture.md for arguments and results."""

    items: ItemStore
    journals: Journals
    replicas: Replicas
    settler: Settler
    fabric: Fabric
    folders: Folders
    open_base: OpenBase
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    stopping: Callable[[], bool] = lambda: False

    @property
    def seeding(self) -> Seeding:
        """What fills a fresh journal from images."""
        return Seeding(self.items, self.fabric, self.folders, self.clock, self.stopping)

    @property
    def adoption(self) -> Adoption:
        """What makes a target of an old side."""
        return Adoption(self.items, self.journals, self.fabric, self.folders, self.open_base, self.clock)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by command kind."""
        return {
            "target.create": self.create,
            "target.adopt": self.adopt,
            "target.drop_diverged": self.drop_diverged,
            "target.policy": self.policy,
            "target.test_start": self.test_start,
            "target.test_cleanup": self.test_cleanup,
            "target.failover": self.failover,
            "target.abandon": self.abandon,
            "target.commit": self.commit,
            "target.remove": self.remove,
            "standby.remove": self.remove_standby,
        }

    def create(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Make a fresh journal: all zeros, no point; or with what the images of a seed hold."""
        item, args = _item(command), command.args
        disks = {parse_disk_key(key): int(size) for key, size in args["disks"].items()}
        record = self.items.find(item)
        if record is not None:
            require_role(record, Role.TARGET)
        record = ItemRecord(
            item=item,
            name=str(args["name"]),
            epoch=command.epoch,
            role=Role.TARGET,
            digest_key=_key(args),
            policy=Policy(**args["policy"]),
            disks=tuple(disks),
            peer=_source(args),
        )
        if not self.journals.exists(item):
            Journal.create(
                self.folders.journal(item),
                item=item,
                name=record.name,
                epoch=command.epoch,
                key=record.key,
                disks=disks,
            ).close()
        # Before the seeding, which takes long and may be cut: so that a disable finds it.
        self.items.put(record)
        if not args.get("seed"):
            return {}
        return {
            "seeded": self.seeding.seed(record, self.journals.get(item), Path(str(args["seed"])), progress)
        }

    def adopt(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Become the target again: the old machine's disks are the journal's base, whatever they hold."""
        args = command.args
        return self.adoption.adopt(
            _item(command),
            command.epoch,
            _source(args),
            Policy(**args["policy"]),
            Sequence(int(args.get("after") or 0)),
            progress,
        )

    def drop_diverged(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Give up the point that a reversal kept of the old side's disks."""
        item = _item(command)
        require_role(self.items.get(item), Role.TARGET, Role.ACTIVE)
        self.adoption.drop(item)
        return {}

    def policy(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Take a changed policy; retention follows it at its next round."""
        self.items.change(_item(command), policy=Policy(**command.args["policy"]))
        return {}

    def test_start(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Start the test's machine."""
        args = command.args
        test = self.replicas.start_test(
            _item(command), _sequence(args), str(args["name"]), dict(args.get("networks") or {})
        )
        return self._describe(command, test)

    def test_cleanup(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Remove the test."""
        self.replicas.remove_test(_item(command))
        return {}

    def failover(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Take the item over."""
        item, args = _item(command), command.args
        digest: Digest | None = parse_digest(args["digest"]) if args.get("digest") else None
        failover = self.replicas.fail_over(
            item,
            _sequence(args),
            digest,
            Epoch(int(args["new_epoch"])),
            str(args["name"]),
            dict(args.get("networks") or {}),
        )
        self.settler.start(item)
        return self._describe(command, failover)

    def abandon(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Undo a failover: it did not come to its end, another point is wanted, or none."""
        item, args = _item(command), command.args
        self.settler.cancel(item)
        following = args.get("next_epoch")
        self.replicas.abandon(
            item, Epoch(int(args["epoch"])), None if following is None else Epoch(int(following))
        )
        return {}

    def commit(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Give up all points; the machine goes on alone."""
        item = _item(command)
        record = self.items.get(item)
        require_role(record, Role.ACTIVE)
        if record.test is not None:
            raise OperationRefusedError(
                f"a test failover of {record.name} reads the journal", hint="clean it up first: cleanup-test"
            )
        self.adoption.require_dropped(record)
        self.settler.wait(
            item, lambda done, total: progress(None, "copying", bytes_done=done, bytes_total=total)
        )
        self.settler.join(item)
        self.replicas.let_go(item)
        self._delete_journal(record, remove_images=True)
        self.items.change(item, images={})
        return {}

    def remove(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Forget the item on the target's side. Disks that we made go with it; a machine's own old disks, which served as
        base after a reversal, only with `delete_replica`.
        """
        item = _item(command)
        if item in self.items.damaged:
            self.adoption.drop(item)
            self.journals.delete(item, remove_images=False)
            self.items.forget_damaged(item)
        self.seeding.tidy(item)
        record = self.items.find(item)
        if record is None:
            self._delete_unborn(item)
            return {}
        require_role(record, Role.TARGET, Role.ACTIVE)
        if record.test is not None:
            self.replicas.remove_test(item)
        if record.role is Role.ACTIVE:
            # The machine runs here and stays; it must not need the journal any more.
            self.settler.wait(item, lambda _done, _total: None)
            self.replicas.let_go(item)
        if record.role is Role.ACTIVE:
            give_back_autostart(self.fabric, record)
        self.adoption.drop(item)  # with the protection ends what was kept for it
        delete_images = record.role is Role.ACTIVE or bool(command.args.get("delete_replica"))
        self._delete_journal(record, remove_images=delete_images)
        if record.role is Role.TARGET:
            self._delete_own_replicas(record)
        self.items.remove(item)
        return {}

    def _delete_unborn(self, item: ItemId) -> None:
        """Remove what a `create` left that was cut before it had written the record: at most a journal without a point."""
        if self.journals.exists(item) and self.journals.get(item).status().last is None:
            self.journals.delete(item, remove_images=False)
        self.items.remove(item)

    def _delete_own_replicas(self, record: ItemRecord) -> None:
        folder = self.folders.replicas(record.item)
        self.fabric.delete_disks([path for path in _paths(record).values() if path.is_relative_to(folder)])
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def remove_standby(self, command: Command, progress: Progress) -> Mapping[str, Any]:
        """Forget the item where its machine used to run; the machine is kept, off, unless `delete_replica`."""
        item = _item(command)
        self.items.forget_damaged(item)
        record = self.items.find(item)
        if record is None:
            return {}
        require_role(record, Role.STANDBY, Role.PREPARED)
        result: dict[str, Any] = {}
        if _known(self.fabric, record.vm):
            # Off and off for good: the other side runs it, so it must not start with its host either.
            self.fabric.unlock_power(record.vm, autostart=False)
            result["autostart"] = False
            took_over = record.role is Role.STANDBY or command.epoch > record.epoch
            if command.args.get("delete_replica") and took_over:
                images = self._own_images(record)
                self.fabric.undefine(record.vm, keep_disks=True)
                self.fabric.delete_disks(images)
        self.items.remove(item)
        return result

    def _own_images(self, record: ItemRecord) -> list[Path]:
        """The images of the protected disks, but for those that another machine names: others were never replicated."""
        others = {
            disk.path for vm in self.fabric.inventory().vms if vm.uuid != record.vm for disk in vm.disks
        }
        return [
            disk.path
            for disk in self.fabric.find(record.vm).disks
            if disk.key in record.disks
            and disk.path is not None
            and not disk.shareable
            and not disk.readonly
            and disk.path not in others
        ]

    def _delete_journal(self, record: ItemRecord, *, remove_images: bool) -> None:
        self.journals.delete(record.item, remove_images=remove_images)
        for path in _paths(record).values():
            stop_shared(path, self.folders.run)

    def _describe(self, command: Command, replica: Replica) -> dict[str, Any]:
        manifest = self.journals.get(_item(command)).manifest(replica.sequence)
        return {
            "vm": replica.vm,
            "name": replica.name,
            "sequence": replica.sequence,
            "time": format_time(manifest.time),
            "digest": replica.digest,
        }


def _source(args: Mapping[str, Any]) -> Peer:
    principal = args.get("source_principal")
    return Peer(
        NodeId(args["source_node"]), principal="" if principal is None else parse_principal(principal)
    )


def _item(command: Command) -> Any:
    if command.item is None:
        raise InvalidInputError(f"{command.kind} names no item")
    return command.item


def _key(args: Mapping[str, Any]) -> str:
    key = args.get("digest_key")
    if not isinstance(key, str) or len(bytes.fromhex(key)) != 32:
        raise InvalidInputError("digest_key is not 32 bytes in hex")
    return key


def _sequence(args: Mapping[str, Any]) -> Sequence | None:
    sequence = args.get("sequence")
    return None if sequence is None else Sequence(int(sequence))


def _paths(record: ItemRecord) -> dict[DiskKey, Path]:
    return {disk: Path(path) for disk, path in record.images.items()}


def _known(fabric: Fabric, vm: str) -> bool:
    try:
        fabric.power(vm)
    except NotFoundError:
        return False
    return True
