"""Bugs to plant in the daemons of a lab, so that the proofs on real guests can be seen to find them.

The harness puts a bug's name into the environment that the lab's processes inherit, and a `sitecustomize` module of its own on
their path: a daemon that the bug is of plants it in itself before it begins. The product knows nothing of it.

Light at the top: this module is loaded by those daemons, too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

Place = tuple[Any, str, Any]
"""Where, which attribute, and what is there instead."""

_TESTS: Final = Path(__file__).resolve().parents[1]
_HOOK: Final = """
import os, sys

if sys.orig_argv[1:5] == ["-m", "secondsite", os.environ["PLANTED_IN"], "run"]:
    sys.path.insert(0, os.environ["PLANTED_FROM"])
    from support.lab_bugs import BUGS
    BUGS[os.environ["PLANTED"]].plant()
"""


@dataclass(frozen=True)
class LabBug:
    """One mistake of a daemon ("node" or "service"). For the kill matrix: in which operation of a short round who dies, and when."""

    why: str
    daemon: str
    places: Callable[[], Sequence[Place]]
    operation: str = ""
    victim: str = ""
    moment: int = 0

    def plant(self) -> None:
        """Have the mistake in this process from now on."""
        for where, name, instead in self.places():
            assert hasattr(where, name), f"{where} has no {name} any more"
            setattr(where, name, instead)


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have the bug in every daemon of its kind that is started within."""
    with tempfile.TemporaryDirectory(prefix="ss-bug-") as folder:
        (Path(folder) / "sitecustomize.py").write_text(_HOOK)
        environment = {
            "PYTHONPATH": os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PLANTED": name,
            "PLANTED_IN": BUGS[name].daemon,
            "PLANTED_FROM": str(_TESTS),
        }
        with patch.dict(os.environ, environment):
            yield


# -- the source's node ---------------------------------------------------------------------------------------


def _last_changes_stay() -> Sequence[Place]:
    from secondsite.node.source.replicator import Replicators

    return [(Replicators, "run_once", lambda *_args: None)]


def _a_disk_is_left_out() -> Sequence[Place]:
    from secondsite.model.manifest import PointKind
    from secondsite.node.source.cycle import Cycle

    produce = Cycle._produce

    def without_one(self: Any, sender: Any, snapshot: Any, disk: Any, *rest: Any) -> Iterator[Any]:
        if self.kind is not PointKind.INITIAL and disk == max(snapshot.disks):
            return iter(())
        return produce(self, sender, snapshot, disk, *rest)

    return [(Cycle, "_produce", without_one)]


def _first_delta_is_empty() -> Sequence[Place]:
    from secondsite.node.source.commands import SourceCommands
    from secondsite.node.source.cycle import Cycle

    resume, produce, cycle = SourceCommands._resume, Cycle._produce, Cycle._cycle

    def noted(self: Any, command: Any, item: Any) -> None:
        resume(self, command, item)
        (self.items.folder(item) / "planted").touch()

    def nothing(self: Any, *args: Any) -> Iterator[Any]:
        return iter(()) if (self._folder / "planted").exists() else produce(self, *args)

    def once(self: Any, *args: Any) -> Any:
        outcome = cycle(self, *args)
        (self._folder / "planted").unlink(missing_ok=True)
        return outcome

    return [(SourceCommands, "_resume", noted), (Cycle, "_produce", nothing), (Cycle, "_cycle", once)]


def _nothing_is_known(items: Any, item: Any) -> None:
    from secondsite.model.units import BLOCK
    from secondsite.node.source.belief import OpenTables

    record = items.get(item)
    if record.acked is None:
        return
    with OpenTables(items.folder(item) / "digests", record) as tables:
        for table in tables.values():
            table.mark_unknown(0, -(-table.disk_size // BLOCK))
            table.sync()
    items.change(item, acked=replace(record.acked, checkpoint=""))


def _all_anew_after_a_reversal() -> Sequence[Place]:
    from secondsite.node.source.commands import SourceCommands

    resume = SourceCommands._resume

    def forgetful(self: Any, command: Any, item: Any) -> None:
        resume(self, command, item)
        _nothing_is_known(self.items, item)

    return [(SourceCommands, "_resume", forgetful)]


def _all_anew_after_a_restart() -> Sequence[Place]:
    from secondsite.node.source.belief import Belief

    resolve = Belief.resolve

    def forgetful(self: Any, record: Any, sender: Any) -> None:
        resolve(self, record, sender)
        _nothing_is_known(self._items, record.item)

    return [(Belief, "resolve", forgetful)]


def _lost_tracking_is_believed() -> Sequence[Place]:
    from secondsite.node.source.cycle import Cycle

    snapshot, produce = Cycle._snapshot, Cycle._produce

    def noted(self: Any, stack: Any, capture: Any, record: Any, *rest: Any) -> Any:
        found = snapshot(self, stack, capture, record, *rest)
        tracked = record.acked is not None and record.acked.checkpoint
        self._planted = bool(tracked and not found[1].acked.checkpoint)
        return found

    def nothing(self: Any, *args: Any) -> Iterator[Any]:
        return iter(()) if self._planted else produce(self, *args)

    return [(Cycle, "_snapshot", noted), (Cycle, "_produce", nothing)]


# -- the target's node ---------------------------------------------------------------------------------------


def _the_point_before() -> Sequence[Place]:
    from secondsite.fabric.port import ReplicaRole
    from secondsite.node.target.replicas import Replicas

    boot = Replicas._boot

    def older(self: Any, record: Any, manifest: Any, replica: Any, role: Any, *rest: Any) -> str:
        if role is ReplicaRole.REPLICA:
            manifest = self._journals.get(record.item).point(manifest.sequence - 1).manifest
        return boot(self, record, manifest, replica, role, *rest)

    return [(Replicas, "_boot", older)]


def _the_replica_runs_on() -> Sequence[Place]:
    from secondsite.node.target.replicas import Replicas

    return [(Replicas, "_remove_machines", lambda *_args: None)]


def _a_dead_view_stays_dead() -> Sequence[Place]:
    from secondsite.node.target.replicas import Replicas

    return [(Replicas, "tend", lambda *_args: None)]


# -- the service ---------------------------------------------------------------------------------------------


def _jobs_are_left_lying() -> Sequence[Place]:
    from dbos import _dbos

    from secondsite.service.workflows.orphans import Orphans

    return [
        (_dbos, "startup_recovery_thread", lambda *_args: None),
        (Orphans, "start", lambda _self: None),
        (Orphans, "join", lambda _self: None),
    ]


SWAP_BUGS: Final[Mapping[str, LabBug]] = {
    "last-changes-stay": LabBug("the last changes before a planned failover are not shipped", "node", _last_changes_stay),
    "disk-left-out": LabBug("the changes of one disk are left out", "node", _a_disk_is_left_out),
    "first-delta-empty": LabBug("what was written between failover and reversal is not shipped", "node", _first_delta_is_empty),
    "all-anew-after-reversal": LabBug("a reversal ships whole disks", "node", _all_anew_after_a_reversal),
    "point-before": LabBug("the failover starts the point before the one that it names", "node", _the_point_before),
}  # fmt: skip

KILL_BUGS: Final[Mapping[str, LabBug]] = {
    "lost-tracking-believed": LabBug(
        "after its QEMU was killed a machine counts as unchanged", "node", _lost_tracking_is_believed, "planned-failover", "its QEMU"),
    "all-anew-after-restart": LabBug(
        "a node that was started again ships whole disks", "node", _all_anew_after_a_restart, "planned-failover", "node that runs it"),
    "replica-runs-on": LabBug(
        "a cancelled failover leaves its machine running", "node", _the_replica_runs_on, "cancel", "service"),
    "dead-view-stays-dead": LabBug(
        "a view server that was killed is not started again", "node", _a_dead_view_stays_dead, "planned-failover", "view server", 4),
    "jobs-left-lying": LabBug(
        "a service that was started again leaves its jobs lying", "service", _jobs_are_left_lying, "planned-failover", "service"),
}  # fmt: skip

BUGS: Final[Mapping[str, LabBug]] = {**SWAP_BUGS, **KILL_BUGS}
