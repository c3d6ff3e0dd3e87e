"""Two real node daemons, each in a process of its own, without a service: the benchmark gives the commands that it would give.

A source and a target with certificates of one authority and a hypervisor each. With a `Line` each of them, and every
other program that is asked to, runs in a network namespace of its own, and the only way between them has the rate of the line.
What this does not do: it measures nothing.

    python bench/two_nodes.py STATE     (a node: reads commands as lines of JSON, answers with lines of JSON)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from secondsite.errors import RemoteError
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey, ItemId, NodeId, SiteId
from secondsite.model.policy import Policy
from secondsite.node.config import NodeConfig
from secondsite.ship.identity import CertificateAuthority
from support.node_pair import KEY, PairNode

_POLL_S = 0.005
_CYCLE_S = 200.0


@dataclass(frozen=True, slots=True)
class Line:
    """Two network namespaces and the veth pair between them."""

    source: str
    target: str
    target_address: str

    @staticmethod
    def inside(namespace: str) -> list[str]:
        """Words that begin a command which runs in the namespace."""
        return ["ip", "netns", "exec", namespace]


@contextmanager
def line(rate_mbit: int) -> Iterator[Line]:
    """Make the line, limited in both directions by the kernel's token bucket; needs root."""
    mark = f"ssb{os.getpid()}"
    made = Line(f"{mark}a", f"{mark}b", "10.77.1.2")
    try:
        for namespace in (made.source, made.target):
            _run("ip", "netns", "add", namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
        _run(
            *("ip", "link", "add", "line", "netns", made.source),
            *("type", "veth", "peer", "name", "line", "netns", made.target),
        )
        for namespace, address in ((made.source, "10.77.1.1/24"), (made.target, f"{made.target_address}/24")):
            _run("ip", "-n", namespace, "addr", "add", address, "dev", "line")
            _run("ip", "-n", namespace, "link", "set", "line", "up")
            bucket = ["rate", f"{rate_mbit}mbit", "burst", "128k", "latency", "50ms"]
            _run(*Line.inside(namespace), "tc", "qdisc", "add", "dev", "line", "root", "tbf", *bucket)
        yield made
    finally:
        for namespace in (made.source, made.target):
            subprocess.run(["ip", "netns", "del", namespace], check=False, stderr=subprocess.DEVNULL)


class NodeProcess:
    """One node daemon, to be commanded from here."""

    def __init__(self, state: Path, namespace: str | None = None) -> None:
        self.config = NodeConfig.load(state)
        self._process = subprocess.Popen(
            [*(Line.inside(namespace) if namespace else ()), sys.executable, __file__, str(state)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def call(self, kind: str, item: ItemId, args: Mapping[str, Any] | None = None) -> Any:
        """Run a command of the service's; return its result, raise its error."""
        return self._ask({"kind": kind, "item": item, "args": args or {}})

    def first_cycle(self, item: ItemId) -> dict[str, Any]:
        """Wait until a cycle was acknowledged; return what the node reports of it."""
        outcome: dict[str, Any] = self._ask({"cycle": item})
        return outcome

    def cpu_s(self) -> float:
        """Processor seconds that the node has used."""
        return float(self._ask({"cpu": True}))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        text = self._process.stdout.readline()
        if not text:
            raise SystemExit("a node ended")
        answer = json.loads(text)
        if "error" in answer:
            raise RemoteError(answer["error"])
        return answer["result"]


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """See the module's docstring."""

    source: NodeProcess
    target: NodeProcess
    journals: Path

    def prepare(self, name: str, disks: Mapping[DiskKey, int], policy: Policy) -> ItemId:
        """Make the journal that the first cycle will fill."""
        item = ItemId(str(uuid.uuid4()))
        self.target.call(
            "target.create",
            item,
            _shared(name, policy) | {"disks": dict(disks), "source_node": self.source.config.node},
        )
        return item

    def start(self, item: ItemId, name: str, disks: Mapping[DiskKey, int], policy: Policy) -> None:
        """Begin to replicate the machine `name`."""
        config = self.target.config
        place = {"node": config.node, "host": config.listen_host, "port": config.listen_port}
        self.source.call(
            "source.start",
            item,
            _shared(name, policy) | {"vm": name, "disks": list(disks), "target": place, "resume": False},
        )

    def disable(self, item: ItemId) -> None:
        """Leave nothing of the item's on either side."""
        self.source.call("source.stop", item, {"delete_replica": False})
        self.target.call("target.remove", item, {"delete_replica": False})


@contextmanager
def two_nodes(folder: Path, source: Hypervisor, target: Hypervisor, on: Line | None) -> Iterator[TwoNodes]:
    """Start both nodes; they end with the block."""
    authority = CertificateAuthority.create("bench")
    address = on.target_address if on else "127.0.0.1"
    nodes: list[NodeProcess] = []
    try:
        for name, hypervisor, namespace in (
            ("source", source, on and on.source),
            ("target", target, on and on.target),
        ):
            state = folder / f"node-{name}"
            state.mkdir(parents=True)
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
                listen_host=address if name == "target" else "127.0.0.1",
                listen_port=free_port(),
            ).save(state)
            nodes.append(NodeProcess(state, namespace))
        yield TwoNodes(nodes[0], nodes[1], target.storage / "secondsite" / "journals")
    finally:
        for node in nodes:
            node.close()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _shared(name: str, policy: Policy) -> dict[str, Any]:
    return {"name": name, "digest_key": KEY, "policy": asdict(policy)}


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


# -- the node's own process --------------------------------------------------------------------------------


def main() -> None:
    """Be a node until the standard input ends. Only answers go to the standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    node = PairNode(Path(sys.argv[1]))
    print(json.dumps({"result": None}), file=answers, flush=True)
    for text in sys.stdin:
        try:
            answer: dict[str, Any] = {"result": _answer_to(node, json.loads(text))}
        except RemoteError as error:
            answer = {"error": error.to_dict()}
        print(json.dumps(answer), file=answers, flush=True)
    node.close()


def _answer_to(node: PairNode, question: Mapping[str, Any]) -> Any:
    if "cpu" in question:
        return time.process_time()
    if "cycle" in question:
        end = time.monotonic() + _CYCLE_S
        while time.monotonic() < end:
            replicator = node.daemon.replicators.find(ItemId(question["cycle"]))
            status = None if replicator is None else replicator.status()
            if status is not None and status["last_cycle"] is not None:
                return status["last_cycle"]
            if status is not None and status["error"] is not None:
                print(status["error"], file=sys.stderr)
            time.sleep(_POLL_S)
        raise RemoteError({"message": "no cycle ended"})
    return node.call(question["kind"], ItemId(question["item"]), 1, question["args"], timeout_s=120)


if __name__ == "__main__":
    main()
