"""The composition root of a node: wires the adapters, starts the threads, ends them.

Order of start: the listener and the replicators first (data flows without the service), then the channel. A second
daemon on the same state folder is refused by a lock.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from secondsite import durable
from secondsite.capture.checkpoints import adopt_checkpoint
from secondsite.capture.guard import ThawGuard
from secondsite.capture.guest_agent import LibvirtAgent
from secondsite.capture.machine import Machine
from secondsite.capture.port import Capture
from secondsite.capture.quiesce import Quiescer
from secondsite.capture.select import capture_for
from secondsite.errors import CorruptError, SecondSiteError
from secondsite.fabric.libvirt import LibvirtFabric
from secondsite.fabric.port import Fabric
from secondsite.journal import finish_deletes
from secondsite.model.ids import Epoch, ItemId, NodeId
from secondsite.nbd.image import base_opener
from secondsite.node.channel import STANDBY_POLL_S, STANDBY_RETRY_MAX_S, Channel
from secondsite.node.config import Folders, NodeConfig
from secondsite.node.events import NodeEvents
from secondsite.node.executor import Executor
from secondsite.node.kerberos import TicketListener, telling, trust_for
from secondsite.node.metrics import MetricsServer, NodeMetrics, serve
from secondsite.node.records import ItemRecord, ItemStore
from secondsite.node.removals import Removals
from secondsite.node.renewal import Renewal
from secondsite.node.renewal import finish as finish_renewal
from secondsite.node.report import Reporter
from secondsite.node.source.barrier import Pausing
from secondsite.node.source.commands import SourceCommands
from secondsite.node.source.consistency import thaw_leftovers
from secondsite.node.source.cut_exports import CutExports
from secondsite.node.source.gate import Gate
from secondsite.node.source.groups import Groups
from secondsite.node.source.replicator import Adapters, Replicators
from secondsite.node.source.resume_guard import ResumeGuard
from secondsite.node.source.standing import AskedStanding
from secondsite.node.target.commands import TargetCommands
from secondsite.node.target.journals import Journals
from secondsite.node.target.receiver import JournalReceiver
from secondsite.node.target.replicas import Replicas
from secondsite.node.target.settler import Settler
from secondsite.node.target.space import Space
from secondsite.node.target.upkeep import Upkeep
from secondsite.node.target.views import Views
from secondsite.ship.client import Endpoint
from secondsite.ship.failover import ServiceClient
from secondsite.ship.identity import Credentials
from secondsite.ship.listener import Listener
from secondsite.ship.sender import Sender
from secondsite.ship.throttle import TokenBucket, rate_of

log = structlog.get_logger(__name__)


class NodeDaemon:
    """A running node. `start`, then `close`."""

    def __init__(self, state: Path, *, fabric: Fabric | None = None) -> None:
        self.config = NodeConfig.load(state)
        folders = Folders(state, Path(self.config.storage))
        folders.make()
        self._lock = durable.FileLock(state / "lock")
        self._lock.acquire()
        credentials = Credentials(
            folders.identity / "node.pem", folders.identity / "node.key", folders.identity / "ca.pem"
        )
        finish_renewal(credentials)
        self.fabric = fabric or LibvirtFabric(self.config.fabric)
        self.items = ItemStore(folders.items)
        _finish_deletes(folders)
        self._closing = threading.Event()
        self._limiters: dict[str, TokenBucket] = {}
        open_base = base_opener(folders.run)
        self.journals = Journals(folders.journal, open_base)

        def sender(record: ItemRecord, cancelled: threading.Event) -> Sender:
            assert record.peer is not None
            return Sender(
                Endpoint(record.peer.host, record.peer.port, record.peer.node),
                trust_for(record.peer, credentials, self.config.kerberos, folders.run),
                record.item,
                record.epoch,
                limiter=self._limiter(record),
                compression=record.policy.compression,
                cancelled=cancelled,
            )

        def capture(record: ItemRecord) -> Capture:
            return capture_for(self.config.fabric, record.vm, record.disks, _scratch(folders, record))

        self.events = NodeEvents()
        guard = ResumeGuard(self.config.fabric) if fabric is None else None
        pausing = Pausing(
            self.fabric, state / "groups", lambda: datetime.now(UTC), time.monotonic, guard=guard
        )
        groups = Groups(pausing)
        adapters = Adapters(
            groups=groups,
            superseded=self._superseded,
            quiescer=self._quiescer,
            tell=self.events.tell,
            capture=capture,
            sender=sender,
            definition=lambda record: self.fabric.definition(record.vm),
            adopt_checkpoint=lambda record, name: adopt_checkpoint(
                Machine(self.config.fabric, record.vm, record.disks), name, lambda: datetime.now(UTC)
            ),
        )
        self.replicators = Replicators(self.items, adapters)
        self.replicas = Replicas(self.items, self.journals, Views(folders.run), self.fabric, folders)
        self.settler = Settler(self.items, self.replicas)
        clock = adapters.clock
        self.upkeep = Upkeep(self.items, self.journals, self.replicas, self.settler, clock)
        receiver = JournalReceiver(self.items, self.journals)
        self.removals = Removals(state / "removed.json")
        self.listener = Listener(
            (self.config.listen_host, self.config.listen_port),
            credentials,
            receiver,
            is_removed=self.removals.__contains__,
        )
        kerberos = self.config.kerberos
        self.tickets: TicketListener | None = None
        if kerberos is not None and kerberos.listen_host:
            replay = folders.identity / "replay"
            self.tickets = TicketListener(
                kerberos,
                credentials,
                receiver,
                self.items,
                replay,
                self.removals.__contains__,
                lambda code, message: self.events.tell(None, code, message),
            )
        reporter = Reporter(
            self.items, self.replicators, self.journals, self.fabric, clock, events=self.events
        )
        client, patience = service_client(self.config, credentials)
        make = reporter.make if kerberos is None else telling(reporter.make, kerberos, self.tickets)
        self.channel = Channel(client, make, reporter.forget_sent, removals=self.removals, **patience)
        reporter.space = self.space = Space(self.items, self.journals, folders.storage, clock)
        self._metrics = NodeMetrics(
            self.items, self.replicators, self.space, lambda: self.channel.connected, clock
        )
        self.metrics: MetricsServer | None = None
        self.gate = Gate(
            self.items,
            self.replicators,
            self.fabric,
            folders.run,
            AskedStanding(sender, client, self._closing),
            self.config.node,
        )
        self.cut_exports = CutExports(
            self.items,
            self.fabric,
            folders,
            lambda vm, disks, scratch: capture_for(self.config.fabric, vm, disks, scratch),
        )
        self.renewal = Renewal(credentials, client, self._renewed, clock)
        handlers = {
            **groups.handlers(),
            **SourceCommands(self.items, self.replicators, self.fabric).handlers(),
            **TargetCommands(
                self.items,
                self.journals,
                self.replicas,
                self.settler,
                self.fabric,
                folders,
                open_base,
                stopping=self._closing.is_set,
            ).handlers(),
        }
        self.executor = Executor(folders.commands, handlers, self.items, self.channel)

    def start(self) -> None:
        """Start everything; the data plane first."""
        self.listener.start()
        if self.tickets is not None:
            self.tickets.start()
        thaw_leftovers(self.items, self._quiescer, self._closing)
        self.gate.begin()
        self.replicators.start_all()
        self.gate.start()
        self.upkeep.start()
        self.space.start()
        self.cut_exports.start()
        self.metrics = serve(self.config.metrics_port, self._metrics)
        self.channel.start(self.executor.submit, self.executor.running)
        self.renewal.start()
        log.info("node started", node=self.config.node, name=self.config.name)

    def close(self) -> None:
        """End in the reverse order. Views and machines go on."""
        self.executor.stopping()  # first: what ends because we are closing was cut, it did not fail
        self._closing.set()
        self.renewal.close()
        self.channel.close()
        self.gate.close()
        self.replicators.close()
        if self.tickets is not None:
            self.tickets.stop()
        self.listener.stop()
        self.settler.close()
        self.upkeep.close()
        self.space.close()
        self.cut_exports.close()
        if self.metrics is not None:
            self.metrics.close()
        self.executor.close()
        self.journals.close()
        self.fabric.close()
        self._lock.release()

    def _superseded(self, item: ItemId, epoch: Epoch) -> None:
        self.gate.superseded(item, epoch)

    def _renewed(self) -> None:
        """New connections show the new certificate. A sender whose old one is refused is made anew by its next cycle."""
        self.listener.reload()
        if self.tickets is not None:
            self.tickets.reload()

    def _quiescer(self, record: ItemRecord) -> Quiescer:
        agent = LibvirtAgent(Machine(self.config.fabric, record.vm, record.disks))
        guard = ThawGuard(self.config.fabric, record.vm)
        return Quiescer(agent, self.items.folder(record.item) / "frozen", guard=guard)

    def _limiter(self, record: ItemRecord) -> TokenBucket:
        """The item's bucket: it follows the policy as it stands, and its schedule, also amid a transfer."""

        def rate() -> int | None:
            try:
                found = self.items.find(record.item)
                return rate_of((found or record).policy, datetime.now(UTC))
            except SecondSiteError as error:
                log.warning("the bandwidth limit is not known", item=record.item, error=error.to_dict())
                return record.policy.bandwidth_limit

        if record.item not in self._limiters:
            self._limiters[record.item] = TokenBucket(None, source=rate)
        return self._limiters[record.item]


def service_client(config: NodeConfig, credentials: Credentials) -> tuple[ServiceClient, dict[str, float]]:
    """Return a client of the service at all its addresses, and how patient the channel is with it."""
    name = NodeId(config.service_name)
    addresses = config.service_addresses
    client = ServiceClient([Endpoint(host, port, name) for host, port in addresses], credentials)
    if len(addresses) == 1:
        return client, {}
    return client, {"poll_s": STANDBY_POLL_S, "retry_max_s": STANDBY_RETRY_MAX_S}


def _finish_deletes(folders: Folders) -> None:
    """Remove what deletes of items and journals left that a crash cut; a damaged journal there is no reason not to start."""
    durable.remove_temporaries(folders.items)
    try:
        finish_deletes(folders.storage / "secondsite" / "journals")
    except CorruptError as error:
        log.warning("cut deletes are not finished", error=error.to_dict())


def _scratch(folders: Folders, record: ItemRecord) -> Path:
    """The item's scratch folder. QEMU, perhaps another user, must be able to create in it; nobody need list it."""
    folder = folders.scratch / record.item.replace("-", "")[:16]
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o733)
    return folder


def run(state: Path, ready: Callable[[Mapping[str, Any]], None] | None = None) -> None:
    """Run the node until SIGTERM or SIGINT."""
    daemon = NodeDaemon(state)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    daemon.start()
    facts = {
        "node": daemon.config.node,
        "name": daemon.config.name,
        "listen": f"{daemon.config.listen_host}:{daemon.config.listen_port}",
        "started": datetime.now(UTC).isoformat(),
    }
    durable.write_atomic(state / "ready.json", json.dumps(facts).encode())
    if ready is not None:
        ready(facts)
    ended.wait()
    daemon.close()
    (state / "ready.json").unlink(missing_ok=True)
