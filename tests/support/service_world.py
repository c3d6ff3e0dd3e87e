"""The service's core in this process, without sockets: a store on SQLite, a clock to turn, nodes that answer at once.

`JournaledSteps` stands for DBOS: it records outcomes and can let a run die before or after any record, so that a test
can begin again from every interrupted prefix.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from secondsite.errors import SecondSiteError, UnavailableError
from secondsite.model.ids import JobId, NodeId
from secondsite.model.item import Operation
from secondsite.model.manifest import format_time
from secondsite.service.context import Actor, Context
from secondsite.service.monitor import look
from secondsite.service.store import commands, events, items, jobs, nodes, vaults
from secondsite.service.store.database import Store
from secondsite.service.store.records import Command, Item, Job
from secondsite.service.usecases import enrolment, operations, protect, reports, setup, tokens
from secondsite.service.vocabulary import Role
from secondsite.service.workflows.engine import WORKFLOWS
from secondsite.service.workflows.run import Run
from secondsite.ship.identity import CertificateAuthority, make_key_and_csr
from support.service_node import machine

ME = Actor("me", Role.CONTRIBUTOR)


class Clock:
    """Time that a test turns."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **by: float) -> None:
        """Go on."""
        self.now += timedelta(**by)


@cache
def authority() -> CertificateAuthority:
    """One authority for all tests of a process."""
    return CertificateAuthority.create("test")


@cache
def template() -> bytes:
    """A migrated, empty database, made once."""
    with tempfile.TemporaryDirectory(prefix="ss-store-") as folder:
        Store.open(f"sqlite:///{folder}/empty.sqlite").close()
        return Path(folder, "empty.sqlite").read_bytes()


class Died(BaseException):
    """The process is gone."""


@dataclass
class JournaledSteps:
    """See the module's docstring. `die_at`: the number of the record; `recorded`: whether it was still written."""

    records: list[tuple[str, str]] = field(default_factory=list)
    die_at: int | None = None
    die_recorded: bool = False
    _next: int = 0

    def again(self) -> JournaledSteps:
        """Return the steps of the process that comes after."""
        return JournaledSteps(self.records)

    def step(self, name: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        number, self._next = self._next, self._next + 1
        if number < len(self.records):
            recorded, outcome = self.records[number]
            assert recorded == name, f"the run is not the same again: {recorded!r}, now {name!r}"
            return dict(json.loads(outcome))
        outcome = json.dumps(action())
        if number == self.die_at and not self.die_recorded:
            raise Died
        self.records.append((name, outcome))
        if number == self.die_at:
            raise Died
        return dict(json.loads(outcome))


Answer = dict[str, Any] | SecondSiteError | None


def _hasty(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


class World:
    """Two sites, a node each, the machine web-1 at the first; `answers` may replace what a kind of command gets."""

    def __init__(self, folder: Path, store: bytes | None = None, *, url: str | None = None) -> None:
        self.file = folder / "store.sqlite"
        self.clock = Clock()
        if url is None:
            self.file.write_bytes(store or template())
            self.store = Store(f"sqlite:///{self.file}")
            # No test here cuts the power, and waiting for the disk at each commit is a third of their time.
            sa.event.listen(self.store._engine, "connect", _hasty)
        else:
            self.store = Store.open(url)
        self.started: list[JobId] = []
        self.ctx = Context(self.store, authority(), self.started.append, self.clock)
        self.answers: dict[str, Callable[[Command], Answer]] = {}
        self.ran: Counter[str] = Counter()
        self.kinds: list[str] = []
        self.args: dict[str, dict[str, Any]] = {}
        self.sequence = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if store is None:
            with self.store.transaction() as tx:
                vaults.create_vault(tx, "test", self.clock())

    def copy(self, folder: Path) -> World:
        """Return another world that begins where this one, which is closed, has ended. Its nodes give their usual answers."""
        assert self._stop.is_set()
        with sqlite3.connect(self.file) as held:
            copied = World(folder, held.serialize())
        held.close()
        copied.clock.now, copied.sequence, copied.vm = self.clock.now, self.sequence, self.vm
        return copied

    def two_sites(self) -> None:
        """Enrol a node at each of two sites and map everything."""
        for site in ("ams", "rtm"):
            setup.create_site(self.ctx, site)
            self.enrol(f"host-{site}", site)
            setup.create_cloud(self.ctx, f"cloud-{site}", site, [f"host-{site}"])
        setup.create_policy(self.ctx, "fast", {"copy_frequency_s": 5, "rpo_threshold_s": 60})
        setup.map_cloud(self.ctx, "cloud-ams", "cloud-rtm", "fast")
        setup.map_network(self.ctx, "ams", "lan", "rtm", "lan-rtm", "lan-test")
        self.vm = machine("web-1")
        self.inventory("host-ams", self.vm)
        self.inventory("host-rtm")

    def enrol(self, name: str, site: str) -> NodeId:
        """Enrol a node."""
        key = tokens.create_registration_key(self.ctx, site).key
        _private, csr = make_key_and_csr(name)
        enrolled = enrolment.enrol(
            self.ctx,
            key=key,
            csr=csr,
            name=name,
            roles=["source", "target"],
            data_address="127.0.0.1:9",
            storage=None,
        )
        return enrolled.node

    def node(self, name: str) -> NodeId:
        """Return a node's id."""
        with self.store.reading() as tx:
            return nodes.get(tx, name).id

    def inventory(self, node: str, *vms: dict[str, Any]) -> None:
        """Report an inventory."""
        reports.take_report(self.ctx, self.node(node), {"inventory": {"vms": list(vms), "networks": []}})

    def point(
        self,
        item: Item,
        *,
        epoch: int | None = None,
        sequence: int | None = None,
        consistency: str = "crash",
        kind: str = "delta",
        node: NodeId | None = None,
    ) -> int:
        """Let the node that keeps the journal (or `node`) report a new point; returns its sequence."""
        self.sequence = sequence or self.sequence + 1
        entry = {
            "sequence": self.sequence,
            "consistency": consistency,
            "kind": kind,
            "epoch": epoch or item.epoch,
            "time": format_time(self.clock()),
            "digest": f"{self.sequence:064x}",
        }
        reports.take_report(
            self.ctx,
            node or item.journal_node_id,
            {"points": {item.id: {"points": [entry], "complete": False}}},
        )
        return self.sequence

    def item(self, ref: str = "web-1") -> Item:
        """Return the item."""
        with self.store.reading() as tx:
            return items.get(tx, ref)

    def job(self, job_id: str) -> Job:
        """Return a job."""
        with self.store.reading() as tx:
            return jobs.get(tx, job_id)

    # -- runs ----------------------------------------------------------------------------------------------

    def run(self, job_id: JobId, steps: JournaledSteps | None = None, speed: float = 1.0) -> Job:
        """Run a job's workflow to its end in this thread, with nodes that answer."""
        self.answering()
        run = Run(self.ctx, steps or JournaledSteps(), job_id, threading.Event(), speed)
        WORKFLOWS[self.job(job_id).operation](run)
        return self.job(job_id)

    def begin(self, operation: Operation, **options: Any) -> Job:
        """Begin an operation of web-1 and return its job, which has not run yet."""
        return operations.start_operation(self.ctx, ME, "web-1", operation, operations.Options(**options))

    def perform(self, operation: Operation, speed: float = 1.0, **options: Any) -> Job:
        """Begin an operation and run it to its end."""
        return self.run(self.begin(operation, **options).id, speed=speed)

    def succeed(self, operation: Operation, **options: Any) -> Job:
        """The same, and it must succeed."""
        job = self.perform(operation, **options)
        assert job.error is None, job.error
        return job

    def away(self, *names: str) -> None:
        """Let these nodes be silent for so long that they are taken to be away; the others are heard."""
        self.clock.turn(minutes=5)
        with self.store.reading() as tx:
            others = [node.id for node in nodes.listed(tx) if node.name not in names]
        for node in others:
            reports.sign_of_life(self.ctx, node)
        look(self.ctx)

    def back(self, name: str) -> None:
        """Let a node be heard again."""
        reports.sign_of_life(self.ctx, self.node(name))

    def epochs(self) -> list[tuple[int, str]]:
        """Return the sides that could write, by epoch."""
        with self.store.reading() as tx:
            return [(row.epoch, row.side.value) for row in items.writable(tx, self.item().id)]

    def told(self, ref: str = "web-1") -> list[str]:
        """Return the codes of the item's events, oldest first."""
        with self.store.reading() as tx:
            item = items.get(tx, ref)
            return [event.code for event in events.listed(tx, after=0) if event.item_id == item.id]

    def protected(self) -> Item:
        """Protect web-1 and return the item."""
        job = self.run(protect.protect(self.ctx, ME, "web-1").id)
        assert job.error is None, job.error
        return self.item()

    # -- nodes ---------------------------------------------------------------------------------------------

    def answering(self) -> None:
        """Let a thread answer the commands of all nodes; called by `run`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="nodes", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the nodes and the store."""
        self._stop.set()
        self.store.bell.ring()
        if self._thread is not None:
            self._thread.join()
        self.store.close()

    def _loop(self) -> None:
        while not self._stop.is_set():
            seen = self.store.bell.count
            with self.store.reading() as tx:
                waiting = [
                    command for node in nodes.listed(tx) for command in commands.deliverable(tx, node.id, ())
                ]
            answered = [self._serve(command) for command in waiting]
            if not any(answered):
                self.store.bell.wait(seen, 1.0)

    def _serve(self, command: Command) -> bool:
        answer = self.answers.get(command.kind, self._usual)(command)
        if answer is None:
            return False  # the node does not fetch it
        self.ran[command.id] += 1
        self.kinds.append(command.kind)
        self.args[command.kind] = {"epoch": command.epoch, **command.args}
        with self.store.transaction() as tx:
            commands.mark_delivered(tx, [command.id], self.clock())
        failed = isinstance(answer, SecondSiteError)
        reports.take_result(
            self.ctx,
            command.node_id,
            command.id,
            result=None if failed else answer,
            error=answer.to_dict() if failed else None,
        )
        return True

    def _usual(self, command: Command) -> dict[str, Any]:
        assert command.item_id is not None
        if command.kind == "source.start":
            self.point(self.item(command.item_id), epoch=command.epoch)
        if command.kind == "source.prepare":
            sequence = self.point(self.item(command.item_id))
            return {"sequence": sequence, "digest": f"{sequence:064x}", "time": format_time(self.clock())}
        if command.kind in {"target.failover", "target.test_start"}:
            vm = str(uuid.uuid5(uuid.NAMESPACE_OID, command.id))
            return {
                "vm": vm,
                "name": command.args["name"],
                "sequence": command.args["sequence"] or self.sequence,
            }
        return {}


def failing(message: str = "no") -> Callable[[Command], Answer]:
    """Return an answer that fails."""
    return lambda _command: UnavailableError(message)


def absent(_command: Command) -> Answer:
    """The node does not fetch commands of this kind."""
    return None
