"""Two node daemons in this process, without a service: the test plays the service and calls handlers."""

from __future__ import annotations

import itertools
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secondsite.errors import RemoteError
from secondsite.model.ids import CommandId, Epoch, ItemId, NodeId, SiteId
from secondsite.model.policy import Policy
from secondsite.node.config import KerberosConfig, NodeConfig
from secondsite.node.daemon import NodeDaemon
from secondsite.node.executor import Command
from secondsite.ship.identity import CertificateAuthority
from support.hypervisors import HypervisorPair

KEY = bytes(range(32)).hex()
POLICY = Policy(copy_frequency_s=5, shutdown_timeout_s=30, resync_window="always")


@dataclass
class Answers:
    """Takes results as the service would."""

    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def result(self, command: CommandId, outcome: Mapping[str, Any]) -> None:
        with self.arrived:
            self.results[command] = outcome
            self.arrived.notify_all()

    def progress(self, command: CommandId, fields: Mapping[str, Any]) -> bool:
        return False

    def wait(self, command: str, timeout_s: float) -> Mapping[str, Any]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: command in self.results, timeout_s), (
                f"{command} has no result"
            )
            return self.results[command]


class PairNode:
    """One node and the means to command it."""

    _numbers = itertools.count(1)

    def __init__(self, state: Path) -> None:
        self.state = state
        self.start()

    def start(self) -> None:
        self.daemon = NodeDaemon(self.state)
        self.answers = Answers()
        self.daemon.executor._answers = self.answers
        self.daemon.listener.start()
        if self.daemon.tickets is not None:
            self.daemon.tickets.start()
        self.daemon.gate.begin()
        self.daemon.replicators.start_all()
        self.daemon.gate.start()
        self.daemon.upkeep.start()

    def close(self) -> None:
        self.daemon.close()

    def call(
        self,
        kind: str,
        item: ItemId,
        epoch: int,
        args: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 60,
    ) -> Mapping[str, Any]:
        """Run a command and return its result; raise its error."""
        identifier = CommandId(f"test-{next(self._numbers)}")
        self.daemon.executor.submit(Command(identifier, kind, item, Epoch(epoch), args or {}))
        outcome = self.answers.wait(identifier, timeout_s)
        if "error" in outcome:
            raise RemoteError(dict(outcome["error"]))
        return outcome["result"]

    @property
    def as_source(self) -> dict[str, Any]:
        """How `target.create` and `target.adopt` name this node."""
        kerberos = self.daemon.config.kerberos
        named = {} if kerberos is None else {"source_principal": kerberos.principal}
        return {"source_node": self.daemon.config.node, **named}

    @property
    def target(self) -> dict[str, Any]:
        """What `source.start` takes as target."""
        config = self.daemon.config
        if self.daemon.tickets is not None and config.kerberos is not None:
            host, port = self.daemon.tickets.listener.address
            place = {"node": config.node, "host": host, "port": port}
            return {**place, "auth": "kerberos", "service": config.kerberos.accepts}
        return {"node": config.node, "host": config.listen_host, "port": config.listen_port}


@dataclass
class NodePair:
    """See the module's docstring."""

    primary: PairNode
    recovery: PairNode

    def protect(
        self, vm: str, disks: Mapping[str, int], *, policy: Policy = POLICY, seed: Path | None = None
    ) -> ItemId:
        """Create the journal, filled from `seed` if there is one, and start replication; return at once."""
        item = ItemId(str(uuid.uuid4()))
        shared = {"name": vm, "digest_key": KEY, "policy": asdict(policy)}
        self.recovery.call(
            "target.create",
            item,
            1,
            {**shared, "disks": dict(disks), **self.primary.as_source}
            | ({} if seed is None else {"seed": str(seed)}),
        )
        self.primary.call(
            "source.start",
            item,
            1,
            {**shared, "vm": vm, "disks": list(disks), "target": self.recovery.target, "resume": False}
            | ({} if seed is None else {"seeded": True}),
        )
        return item

    def close(self) -> None:
        self.primary.close()
        self.recovery.close()


def wait_until(holds: Callable[[], Any], timeout_s: float = 60, what: str = "") -> Any:
    """Return what `holds` returns once it is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what or holds}"
        time.sleep(0.05)


@contextmanager
def node_pair(
    folder: Path, pair: HypervisorPair, kerberos: Mapping[str, KerberosConfig] | None = None
) -> Iterator[NodePair]:
    """Two nodes on two hypervisors, with certificates of one authority. `kerberos`: settings of "primary" and "recovery"."""
    authority = CertificateAuthority.create("test")
    nodes: list[PairNode] = []
    try:
        for name, hypervisor in (("primary", pair.primary), ("recovery", pair.recovery)):
            state = folder / name[0]
            state.mkdir()
            authority.issue_credentials(NodeId(f"node-{name}"), state / "identity")
            NodeConfig(
                node=NodeId(f"node-{name}"),
                name=name,
                site=SiteId(name),
                service_host="127.0.0.1",
                service_port=1,
                service_name="service",
                fabric=hypervisor.uri,
                storage=str(hypervisor.storage),
                listen_host="127.0.0.1",
                listen_port=_free_port(),
                kerberos=(kerberos or {}).get(name),
            ).save(state)
            nodes.append(PairNode(state))
        yield NodePair(*nodes)
    finally:
        for node in nodes:
            node.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
