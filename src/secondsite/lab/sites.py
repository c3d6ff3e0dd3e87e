"""A lab: two sites on this machine, wired as an administrator would wire them.

    <dir>/lab.json      what was started, ports, names (0600: it holds the API token)
          cli.json      for the commands: SECONDSITE_CONFIG=<dir>/cli.json
          ca.pem        of the vault
    <root>/primary, secondary      hypervisors (libvirtd, VM definitions, storage folder "disks")
           service                 the service's data
           p, s                    the nodes' states

`root` is `dir` if its path is short enough for Unix sockets, else a folder under /tmp that lab.json names.

Everything is started through the same doors that people use: the service's commands, its API, enrolment with a
registration key. `up` on a lab that stands starts only what does not run. `down` ends what `up` started, and what
that started, each by its own pid; the files stay unless they are purged.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secondsite import durable, processes
from secondsite.api_client import ApiClient, Connection
from secondsite.errors import InvalidInputError, NotFoundError, SecondSiteError, TimeoutExceededError
from secondsite.lab.hypervisor import Hypervisor

ROOT_LENGTH_MAX: Final = 34
SITES: Final = {"primary": "p", "secondary": "s"}
READY_S: Final = 90.0
DEFAULT_POLICY: Final = "every-5-s"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Lab:
    """Where a lab's parts are. `make` or `load` one."""

    folder: Path
    root: Path
    service_port: int
    node_port: int

    @classmethod
    def make(cls, folder: Path) -> Lab:
        """Return the lab in `folder`, new if there is none yet."""
        folder = folder.absolute()
        try:
            return cls.load(folder)
        except NotFoundError:
            pass
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InvalidInputError(
                f"{folder} holds something else", hint="give --dir an empty or a new folder"
            )
        short = len(os.fsencode(folder)) <= ROOT_LENGTH_MAX
        root = folder if short else Path(tempfile.mkdtemp(prefix="sslab-", dir="/tmp"))
        root.chmod(0o755)
        lab = cls(folder, root, _free_port(), _free_port())
        lab.save({})
        return lab

    @classmethod
    def load(cls, folder: Path) -> Lab:
        """Return the lab in `folder`; NotFoundError if there is none."""
        try:
            fields = json.loads((folder.absolute() / "lab.json").read_text())
            return cls(
                Path(fields["dir"]),
                Path(fields["root"]),
                int(fields["service_port"]),
                int(fields["node_port"]),
            )
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no lab in {folder}", hint="secondsite lab up --dir DIR") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(f"{folder}/lab.json does not parse: {error}") from error

    def save(self, more: dict[str, Any]) -> None:
        """Write lab.json."""
        fields = {
            "dir": str(self.folder),
            "root": str(self.root),
            "service_port": self.service_port,
            "node_port": self.node_port,
            **more,
        }
        durable.write_atomic(self.folder / "lab.json", json.dumps(fields, indent=2).encode())

    def hypervisor(self, site: str) -> Hypervisor:
        """Return the site's hypervisor."""
        return Hypervisor(self.root / site, site)

    def node_state(self, site: str) -> Path:
        """Return the state folder of the site's node."""
        return self.root / SITES[site]

    @property
    def service_data(self) -> Path:
        return self.root / "service"

    def pid_file(self, name: str) -> Path:
        """Return the pid file of "service" or a site's node."""
        return self.root / f"{name}.pid"

    def log_file(self, name: str) -> Path:
        """Return the log of "service" or a site's node."""
        return self.root / f"{name}.log"


def up(folder: Path, say: Say = lambda _: None) -> dict[str, Any]:
    """Start the lab, or what of it does not run; return its description (see `describe`)."""
    lab = Lab.make(folder)
    say("starting two hypervisors")
    _in_parallel([lab.hypervisor(site).start for site in SITES])
    for site in SITES:
        hypervisor = lab.hypervisor(site)
        if hypervisor.has_networks:
            hypervisor.define_networks()
    say("starting the service")
    token = _start_service(lab)
    connection = Connection(
        f"https://127.0.0.1:{lab.service_port}", token, lab.service_data / "ca" / "ca.pem"
    )
    api = ApiClient(connection)
    _wait(lambda: bool(_quietly(lambda: api.get("/vault"))), "the service")
    say("enrolling a node per site")
    _enrol(lab, api)
    for site in SITES:
        start_node(lab, site)
    _wait(lambda: len(_reporting(api)) == len(SITES), "the nodes")
    say("mapping the clouds")
    _map_clouds(lab, api)
    ca = (lab.service_data / "ca" / "ca.pem").read_bytes()
    durable.write_atomic(lab.folder / "ca.pem", ca, mode=0o644)
    cli = {"url": connection.url, "token": token, "ca": str(lab.folder / "ca.pem")}
    durable.write_atomic(lab.folder / "cli.json", json.dumps(cli).encode())
    lab.save({"token": token})
    return describe(folder)


def describe(folder: Path) -> dict[str, Any]:
    """Return what a person or a program needs to use the lab, as JSON values."""
    lab = Lab.load(folder)
    cli = json.loads((lab.folder / "cli.json").read_text())
    sites = {}
    for site in SITES:
        hypervisor = lab.hypervisor(site)
        node = json.loads((lab.node_state(site) / "node.json").read_text())
        sites[site] = {
            "libvirt_uri": hypervisor.uri,
            "storage": str(hypervisor.storage),
            "node": node["name"],
            "node_id": node["node"],
            "node_state": str(lab.node_state(site)),
            "node_pid": _pid(lab.pid_file(site)),
            "journals": str(Path(node["storage"]) / "secondsite" / "journals"),
            "cloud": f"{site}-cloud",
        }
    return {
        "dir": str(lab.folder),
        "url": cli["url"],
        "api_url": cli["url"] + "/api/v1",
        "token": cli["token"],
        "ca": cli["ca"],
        "config": str(lab.folder / "cli.json"),
        "service_pid": _pid(lab.pid_file("service")),
        "policy": DEFAULT_POLICY,
        "sites": sites,
    }


def down(folder: Path, *, purge: bool = False) -> list[str]:
    """End everything that the lab runs; return what was ended. With `purge`, remove its files, too. Idempotent."""
    lab = Lab.load(folder)
    ended = [name for name in (*SITES, "service") if _end(lab.pid_file(name))]
    for site in SITES:
        # Views and image servers outlive their node on purpose; here they end with the lab.
        pid_files = sorted((lab.node_state(site) / "run").glob("*.pid"))
        ended += [pid_file.stem for pid_file in pid_files if _end(pid_file)]
        hypervisor = lab.hypervisor(site)
        if hypervisor.is_running or hypervisor.guests():
            ended.append(f"{site} hypervisor")
        hypervisor.stop()
    if purge:
        if lab.root != lab.folder:
            shutil.rmtree(lab.root, ignore_errors=True)
        shutil.rmtree(lab.folder)
    return ended


def start_node(lab: Lab, site: str) -> None:
    """Start the site's node unless it runs; wait until it is ready."""
    state = lab.node_state(site)
    if processes.find(lab.pid_file(site)) is not None:
        return
    (state / "ready.json").unlink(missing_ok=True)
    argv = [sys.executable, "-m", "secondsite", "node", "run", "--state", str(state)]
    ref = processes.spawn(argv, pid_file=lab.pid_file(site), log_file=lab.log_file(site))
    processes.wait_ready(
        (state / "ready.json").exists,
        ref=ref,
        what=f"the {site} node",
        log_file=lab.log_file(site),
        timeout_s=READY_S,
    )


def start_service(lab: Lab) -> None:
    """Start the service unless it runs; wait until it is ready."""
    if processes.find(lab.pid_file("service")) is not None:
        return
    ready = lab.service_data / "service.json"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "secondsite", "service", "run", "--data", str(lab.service_data)]
    argv += ["--listen", f"127.0.0.1:{lab.service_port}", "--node-listen", f"127.0.0.1:{lab.node_port}"]
    ref = processes.spawn(argv, pid_file=lab.pid_file("service"), log_file=lab.log_file("service"))
    processes.wait_ready(
        ready.exists, ref=ref, what="the service", log_file=lab.log_file("service"), timeout_s=READY_S
    )


def _start_service(lab: Lab) -> str:
    from secondsite.service.daemon import init

    token_file = lab.root / "token"
    if not token_file.exists():
        shutil.rmtree(lab.service_data, ignore_errors=True)  # of an init that was cut: nobody has its token
        token = init(lab.service_data, "lab").token
        durable.write_atomic(token_file, token.encode())
    start_service(lab)
    return token_file.read_text()


def _enrol(lab: Lab, api: ApiClient) -> None:
    from secondsite.node.enrol import EnrolRequest, enrol

    sites = {site["name"] for site in api.get("/sites")}
    for site in SITES:
        if site not in sites:
            api.post("/sites", {"name": site})
        if not (lab.node_state(site) / "node.json").exists():
            key = api.post("/registration-keys", {"site": site})["key"]
            hypervisor = lab.hypervisor(site)
            enrol(
                lab.node_state(site),
                EnrolRequest(
                    service_host="127.0.0.1",
                    service_port=lab.node_port,
                    key=key,
                    name=f"{site}-node",
                    fabric=hypervisor.uri,
                    storage=hypervisor.storage,
                    listen_host="127.0.0.1",
                    listen_port=0,
                ),
            )


def _map_clouds(lab: Lab, api: ApiClient) -> None:
    clouds = {cloud["name"] for cloud in api.get("/clouds")}
    for site in SITES:
        if f"{site}-cloud" not in clouds:
            api.post("/clouds", {"name": f"{site}-cloud", "site": site, "nodes": [f"{site}-node"]})
    if DEFAULT_POLICY not in {policy["name"] for policy in api.get("/policies")}:
        policy = {"copy_frequency_s": 5, "rpo_threshold_s": 30, "resync_window": "always"}
        api.post("/policies", {"name": DEFAULT_POLICY, **policy})
    if not api.get("/cloud-mappings"):
        api.post(
            "/cloud-mappings",
            {"source": "primary-cloud", "target": "secondary-cloud", "policy": DEFAULT_POLICY},
        )
    if lab.hypervisor("primary").has_networks and not api.get("/network-mappings"):
        for source, target in (("primary", "secondary"), ("secondary", "primary")):
            api.post(
                "/network-mappings",
                {
                    "source_site": source,
                    "source_network": "lab-prod",
                    "target_site": target,
                    "target_network": "lab-prod",
                    "test_network": "lab-test",
                },
            )


def _reporting(api: ApiClient) -> list[str]:
    nodes = _quietly(lambda: api.get("/nodes")) or []
    return [node["name"] for node in nodes if node.get("inventory_time")]


def _quietly(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except SecondSiteError:
        return None


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutExceededError(f"{what} did not get ready", hint="read the logs in the lab's folder")
        time.sleep(0.05)


def _in_parallel(calls: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _end(pid_file: Path) -> bool:
    ref = processes.find(pid_file)
    if ref is not None:
        processes.terminate(ref, timeout_s=20)
    pid_file.unlink(missing_ok=True)
    return ref is not None


def _pid(pid_file: Path) -> int | None:
    ref = processes.find(pid_file)
    return None if ref is None else ref.pid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
