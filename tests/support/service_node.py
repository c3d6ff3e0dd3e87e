"""A service in a process of its own, a client of its API, and a scripted node that speaks the real protocol to it.

The fake node enrols over real mutual TLS, polls, keeps results by id as a real one does, and counts how often each
command's handler really ran. A test can hold a kind of command (the node fetches it and does not answer), let it
fail, or crash the node.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from secondsite.errors import SecondSiteError, UnavailableError
from secondsite.model.ids import NodeId
from secondsite.model.manifest import format_time
from secondsite.ship.client import Endpoint, JsonClient, fetch_ca
from secondsite.ship.identity import SERVICE, CaOnly, Credentials, make_key_and_csr

PATIENCE_S = 20.0
Handler = Callable[[dict[str, Any]], dict[str, Any]]


def until(look: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Return the first true value of `look`; fails after the patience."""
    end = time.monotonic() + patience_s
    pause = threading.Event()
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"still waiting for {what} after {patience_s} s")
        pause.wait(0.02)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class ServiceProcess:
    """The service, started and killed by its own process id."""

    def __init__(self, data_dir: Path, database_url: str | None = None) -> None:
        self.data_dir = data_dir
        self.database_url = database_url
        self.process: subprocess.Popen[bytes] | None = None
        self.addresses: dict[str, Any] = {}

    def init(self, vault: str = "test") -> str:
        """Make the vault; returns the Contributor's token."""
        from secondsite.service.daemon import init

        return init(self.data_dir, vault, self.database_url).token

    def start(self, speed: float = 1.0) -> None:
        """Start, on the same ports as before if it ran before, and wait until it listens."""
        people = self.addresses.get("people", {}).get("port", 0)
        # Not port 0: cheroot allows the re-use of an address only for a port that was asked for, and without that
        # the connections that a killed service leaves behind keep its port for a minute.
        nodes = self.addresses.get("nodes", {}).get("port") or free_port()
        code = (
            "import sys, json, logging; from pathlib import Path\n"
            "from secondsite.service.daemon import Options, run\n"
            "logging.basicConfig(level=logging.WARNING)\n"
            f"options = Options(('127.0.0.1', {people}), ('127.0.0.1', {nodes}), monitor_every_s=0.2,"
            f" node_threads=24, speed={speed})\n"
            "def ready(addresses):\n"
            "    print(json.dumps(addresses), flush=True)\n"
            f"run(Path({str(self.data_dir)!r}), options, ready=ready)\n"
        )
        log = (self.data_dir.parent / f"{self.data_dir.name}.log").open("ab")
        with log:
            self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the service did not start: {self.log()}"
        self.addresses = json.loads(line)

    def log(self) -> str:
        """Return what the service logged."""
        return (self.data_dir.parent / f"{self.data_dir.name}.log").read_text()

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    def close(self) -> None:
        """End it if it runs."""
        if self.process is not None:
            self.kill()

    def people(self, token: str | None) -> httpx.Client:
        """Return a client of the API; without a token it is anonymous."""
        context = ssl.create_default_context(cafile=self.addresses["ca"])
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.addresses["url"], verify=context, headers=headers, timeout=30)


class FakeNode:
    """See the module's docstring. `data_address` is only told, nothing listens there."""

    def __init__(
        self, addresses: dict[str, Any], key: str, name: str, folder: Path, data_address: str = "127.0.0.1:9"
    ) -> None:
        self.name = name
        host, port = addresses["nodes"]["host"], addresses["nodes"]["port"]
        endpoint = Endpoint(host, port, SERVICE)
        ca = fetch_ca(host, port, key.split(".")[2])
        private, csr = make_key_and_csr(name)
        folder.mkdir(parents=True, exist_ok=True)
        with JsonClient(endpoint, CaOnly(ca)) as client:
            answer = client.post(
                "/node/v1/enrol",
                {
                    "key": key,
                    "csr": csr.decode(),
                    "name": name,
                    "roles": ["source", "target"],
                    "data_address": data_address,
                    "storage": "/nowhere",
                },
            )
        self.id = NodeId(answer["node"])
        self.credentials = Credentials.write(
            folder, key=private, certificate=answer["certificate"].encode(), ca=ca
        )
        self.client = JsonClient(endpoint, self.credentials, timeout_s=10)
        self.vms: list[dict[str, Any]] = []
        self.handlers: dict[str, Handler] = {}
        self.ran: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []
        self._results: dict[str, dict[str, Any]] = {}
        self._running: set[str] = set()
        self._held: dict[str, threading.Event] = {}
        self._reached: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- script --------------------------------------------------------------------------------------------

    def hold(self, kind: str) -> threading.Event:
        """Do not answer commands of this kind until `let_go`; returns the event that one has arrived."""
        self._held[kind] = threading.Event()
        self._reached[kind] = threading.Event()
        return self._reached[kind]

    def let_go(self, kind: str) -> None:
        """Answer what was held."""
        self._held[kind].set()

    def kinds(self) -> list[str]:
        """Return the kinds of commands that ran, in order."""
        return [command["kind"] for command in self.seen]

    def args(self, kind: str) -> dict[str, Any]:
        """Return the arguments of the last command of this kind."""
        return next(command["args"] for command in reversed(self.seen) if command["kind"] == kind)

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Poll, in a thread, until `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name=f"node-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop to poll: for the service this node is down."""
        self._stop.set()
        for event in self._held.values():
            event.set()
        self.client.close()
        if self._thread is not None:
            self._thread.join(25)
            self._thread = None

    def report(self, **body: Any) -> None:
        """Send a report."""
        self.client.post("/node/v1/report", {"items": [], "points": {}, "events": [], **body})

    def report_inventory(self) -> None:
        """Report the machines in `vms` and one network."""
        self.report(
            inventory={
                "host": {"name": self.name},
                "vms": self.vms,
                "networks": [{"name": "lan", "isolated": False, "active": True}],
            }
        )

    def report_point(self, item: str, sequence: int, epoch: int, *, complete: bool = False) -> None:
        """Report a sealed point, as the node that keeps the journal."""
        point = {
            "sequence": sequence,
            "epoch": epoch,
            "time": format_time(datetime.now(UTC)),
            "consistency": "crash",
            "kind": "delta",
            "digest": f"{sequence:064x}",
            "changed": 4096,
        }
        while not self._stop.is_set():
            try:
                self.report(points={item: {"points": [point], "complete": complete}})
            except UnavailableError:
                self._stop.wait(0.1)  # like a real node, which reports until somebody listens
            else:
                return

    def _loop(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                running = sorted(self._running)
            try:
                answer = self.client.post("/node/v1/poll", {"wait_s": 1, "running": running}, timeout_s=20)
            except SecondSiteError:
                self._stop.wait(0.1)
                continue
            for command in answer["commands"]:
                self._take(command)

    def _take(self, command: dict[str, Any]) -> None:
        identifier = command["id"]
        with self._lock:
            kept = self._results.get(identifier)
            if kept is None:
                if identifier in self._running:
                    return
                self._running.add(identifier)
        if kept is not None:
            self._answer(identifier, kept)
            return
        threading.Thread(target=self._run, args=(command,), daemon=True).start()

    def _run(self, command: dict[str, Any]) -> None:
        identifier, kind = command["id"], command["kind"]
        if kind in self._held:
            self._reached[kind].set()
            self._held[kind].wait(60)
            if self._stop.is_set():
                with self._lock:
                    self._running.discard(identifier)
                return
        with self._lock:
            self.ran[identifier] += 1
            self.seen.append(command)
        try:
            outcome = {"result": self.handlers.get(kind, lambda _command: {})(command)}
        except SecondSiteError as error:
            outcome = {"error": error.to_dict()}
        with self._lock:
            self._results[identifier] = outcome
        self._answer(identifier, outcome)
        with self._lock:
            self._running.discard(identifier)

    def _answer(self, identifier: str, outcome: dict[str, Any]) -> None:
        while not self._stop.is_set():
            try:
                self.client.post("/node/v1/result", {"command": identifier, **outcome})
            except UnavailableError:
                self._stop.wait(0.1)
            else:
                return


def machine(name: str, **more: Any) -> dict[str, Any]:
    """Return a machine as an inventory has it."""
    return {
        "uuid": str(uuid.uuid4()),
        "name": name,
        "power": "running",
        "disks": [
            {"key": "vda", "size": 1 << 30, "format": "qcow2", "replicable": True, "problems": []},
            {"key": "vdb", "size": 1 << 20, "format": "qcow2", "replicable": True, "problems": []},
        ],
        "nics": [{"mac": "52:54:00:00:00:01", "network": "lan", "model": "virtio"}],
        "problems": [],
        "labels": None,
        **more,
    }


class TwoSites:
    """Two sites with one scripted node each, set up through the API; node A has the machine web-1.

    The handlers do what a real node would make the service believe: whoever is the source reports through the other
    that points are sealed.
    """

    def __init__(self, service: ServiceProcess, token: str, folder: Path) -> None:
        self.service = service
        self.api = service.people(token)
        self.nodes: list[FakeNode] = []
        self.sequence = 0
        for site in ("ams", "rtm"):
            self.post("/sites", name=site)
            key = self.post("/registration-keys", site=site)["key"]
            node = FakeNode(service.addresses, key, f"host-{site}", folder / site, f"127.0.0.1:{len(site)}")
            node.start()
            self.nodes.append(node)
            self.post("/clouds", name=f"cloud-{site}", site=site, nodes=[node.name])
        self.a, self.b = self.nodes
        self.post("/policies", name="fast", copy_frequency_s=5, resync_window="always")
        self.post("/cloud-mappings", source="cloud-ams", target="cloud-rtm", policy="fast")
        self.post(
            "/network-mappings",
            source_site="ams",
            source_network="lan",
            target_site="rtm",
            target_network="lan-rtm",
            test_network="lan-test",
        )
        self.a.vms = [machine("web-1")]
        for node, other in ((self.a, self.b), (self.b, self.a)):
            node.report_inventory()
            self._script(node, other)

    def _script(self, node: FakeNode, other: FakeNode) -> None:
        def start(command: dict[str, Any]) -> dict[str, Any]:
            self.sequence += 1
            other.report_point(command["item"], self.sequence, command["epoch"])
            return {}

        def prepare(command: dict[str, Any]) -> dict[str, Any]:
            self.sequence += 1
            other.report_point(command["item"], self.sequence, command["epoch"])
            return {
                "sequence": self.sequence,
                "digest": f"{self.sequence:064x}",
                "time": format_time(datetime.now(UTC)),
            }

        def boot(command: dict[str, Any]) -> dict[str, Any]:
            args = command["args"]
            return {
                "vm": str(uuid.uuid4()),
                "name": args["name"],
                "sequence": args.get("sequence") or self.sequence,
                "time": format_time(datetime.now(UTC)),
            }

        node.handlers = {
            "source.start": start,
            "source.prepare": prepare,
            "target.failover": boot,
            "target.test_start": boot,
        }

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """POST and expect success."""
        answer = self.api.post(path, json=body)
        assert answer.status_code < 300, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def get(self, path: str) -> Any:
        """GET and expect success."""
        answer = self.api.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def item(self) -> dict[str, Any]:
        """Return the item."""
        found: dict[str, Any] = self.get("/items/web-1")
        return found

    def job(self, job: dict[str, Any]) -> dict[str, Any]:
        """Wait until the job has ended and return it."""
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.update(self.get(f"/jobs/{job['id']}"))
            return found["ended"] is not None

        try:
            until(ended, f"the end of {job['operation']}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}\n{self.service.log()}") from error
        return found

    def run(self, operation: str, **body: Any) -> dict[str, Any]:
        """Start an operation of the item and wait for its job's end."""
        return self.job(self.post(f"/items/web-1/{operation}", **body))

    def succeed(self, operation: str, **body: Any) -> dict[str, Any]:
        """Like `run`, and the job must succeed."""
        job = self.run(operation, **body)
        assert job["state"] == "Succeeded", (job, self.service.log())
        return job

    def protect(self) -> dict[str, Any]:
        """Protect web-1."""
        job = self.job(self.post("/items", vm="web-1"))
        assert job["state"] == "Succeeded", (job, self.service.log())
        return job

    def close(self) -> None:
        """Stop the nodes."""
        for node in self.nodes:
            node.stop()
        self.api.close()


@contextmanager
def two_sites(folder: Path, database_url: str | None = None, speed: float = 1.0) -> Iterator[TwoSites]:
    """Two sites in front of a service process, all ended at the end."""
    service = ServiceProcess(folder / "data", database_url)
    sites: TwoSites | None = None
    try:
        token = service.init()
        service.start(speed)
        sites = TwoSites(service, token, folder)
        yield sites
    finally:
        if sites is not None:
            sites.close()
        service.close()
