"""The vault of bench/service.py: made by the product's own calls, then given the history that a year-old vault of its size has.

Sites, clouds, mapping and policy go through the API, nodes enrol over mutual TLS. What 1,000 protections and a day of reports would have
left behind is written into the tables directly: items with their nodes' last reports, jobs with tasks, points, samples.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from secondsite.api_client import ApiClient, Connection
from secondsite.model.ids import NodeId
from secondsite.service.daemon import init
from secondsite.ship.client import Endpoint, JsonClient, fetch_ca
from secondsite.ship.identity import SERVICE, CaOnly, Credentials, make_key_and_csr

MINUTES = 24 * 60
TASKS = 6


@dataclass
class World:
    """A vault's folder, its service's process, and who is in it."""

    data: Path
    token: str
    process: subprocess.Popen[bytes]
    addresses: dict[str, Any]
    nodes: list[dict[str, Any]]

    @property
    def api(self) -> ApiClient:
        """A client of the people's face."""
        return ApiClient(
            Connection(self.addresses["url"].removesuffix("/api/v1"), self.token, Path(self.addresses["ca"]))
        )

    def restart(self) -> None:
        """Stop the service and start it again: a process without the memory of what made the vault."""
        self.stop()
        self.process, self.addresses = start(self.data)

    def stop(self) -> None:
        """End the service by SIGTERM."""
        self.process.terminate()
        self.process.wait(30)


def start(data: Path) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """`secondsite service run`, on ports of its own; returns when it listens."""
    argv = [sys.executable, "-m", "secondsite", "service", "run", "--data", str(data), "--json"]
    argv += ["--listen", "127.0.0.1:0", "--node-listen", "127.0.0.1:0"]
    with (data.parent / "service.log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    text = b""
    while True:
        line = process.stdout.readline()
        assert line, (data.parent / "service.log").read_text()
        text += line
        try:
            return process, json.loads(text)
        except ValueError:
            continue


def build(folder: Path, items: int, pairs: int, points: int, frequency_s: int) -> World:
    """Make the vault with `items` items on `pairs` pairs of nodes, and its history; the service runs when it returns."""
    data = folder / "service"
    token = init(data, "bench").token
    process, addresses = start(data)
    world = World(data, token, process, addresses, [])
    api = world.api
    keys = {}
    for site in ("north", "south"):
        api.post("/sites", {"name": site})
        keys[site] = api.post("/registration-keys", {"site": site, "uses_max": pairs})["key"]
    for index in range(pairs):
        for site, role in (("north", "source"), ("south", "target")):
            name = f"{site}-{index:02}"
            where = folder / name
            world.nodes.append({"id": enrol(addresses, keys[site], name, where), "name": name, "folder": str(where), "role": role,
                                "first_sequence": points, "items": []})  # fmt: skip
    for site in ("north", "south"):
        names = [node["name"] for node in world.nodes if node["name"].startswith(site)]
        api.post("/clouds", {"name": f"cloud-{site}", "site": site, "nodes": names})
    api.post("/policies", {"name": "fast", "copy_frequency_s": frequency_s})
    api.post("/cloud-mappings", {"source": "cloud-north", "target": "cloud-south", "policy": "fast"})
    api.close()
    world.stop()
    fill(data, world.nodes, items, points, frequency_s)
    world.process, world.addresses = start(data)
    return world


def enrol(addresses: dict[str, Any], key: str, name: str, folder: Path) -> NodeId:
    """Enrol a node as `secondsite node enrol` does; its certificate is in `folder`."""
    host, port = addresses["nodes"]["host"], addresses["nodes"]["port"]
    ca = fetch_ca(host, port, key.split(".")[2])
    private, csr = make_key_and_csr(name)
    folder.mkdir()
    with JsonClient(Endpoint(host, port, SERVICE), CaOnly(ca)) as client:
        answer = client.post(
            "/node/v1/enrol",
            {"key": key, "csr": csr.decode(), "name": name, "roles": ["source", "target"], "data_address": "192.0.2.1:8084",
             "storage": "/srv"},
        )  # fmt: skip
    Credentials.write(folder, key=private, certificate=answer["certificate"].encode(), ca=ca)
    return NodeId(answer["node"])


def fill(data: Path, nodes: list[dict[str, Any]], items: int, points: int, frequency_s: int) -> None:
    """Write the history; see the module's docstring. `nodes` get their items and inventories."""
    path = data / "secondsite.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA synchronous = OFF")
    mapping = db.execute("SELECT id FROM cloud_mappings").fetchone()[0]
    now = datetime.now(UTC).replace(tzinfo=None)
    pairs = list(zip(nodes[::2], nodes[1::2], strict=True))
    for node in nodes:
        node["inventory"] = {"host": {"name": node["name"], "hypervisor": "qemu", "version": "7.2", "cpus": 64, "memory": 1 << 39},
                             "vms": [], "networks": [{"name": "lan", "isolated": False, "active": True}]}  # fmt: skip
    for index in range(items):
        source, target = pairs[index % len(pairs)]
        item, vm, name = str(uuid.uuid4()), str(uuid.uuid4()), f"machine-{index:04}"
        source["items"].append(item)
        target["items"].append(item)
        source["inventory"]["vms"].append(machine(vm, name, None))
        labels = {"item": item, "epoch": 1, "role": "replica"}
        target["inventory"]["vms"].append(machine(str(uuid.uuid4()), name, labels))
        begin = now - timedelta(days=30)
        insert(db, "items", {
            "id": item, "name": name, "vm_uuid": vm, "cloud_mapping_id": mapping, "state": "protected", "test_state": "none",
            "direction": "primary-to-recovery", "epoch": 1, "primary_node_id": source["id"], "recovery_node_id": target["id"],
            "journal_node_id": target["id"], "primary_vm": vm, "digest_key": os.urandom(32), "networks": json.dumps(["lan"]),
            "disks": json.dumps({"vda": {"size": 64 << 30}}), "rpo_alert": 0, "created": time(begin), "last_sequence": points,
            "last_point_time": time(now),
        })  # fmt: skip
        insert(
            db,
            "writable_sides",
            {"item_id": item, "epoch": 1, "side": "primary", "node_id": source["id"], "since": time(begin)},
        )
        history(db, item, name, begin)
    for statement, values in series(now, points, frequency_s):
        db.execute(statement, values)
    db.commit()
    db.close()


def history(db: sqlite3.Connection, item: str, name: str, begin: datetime) -> None:
    """The job that protected the item, with its tasks and the event."""
    job, end = str(uuid.uuid4()), begin + timedelta(minutes=20)
    insert(db, "jobs", {"id": job, "operation": "enable", "item_id": item, "item_name": name, "state": "Succeeded", "progress": 1.0,
                        "requested_by": "admin", "parameters": "{}", "created": time(begin), "started": time(begin), "ended": time(end)})  # fmt: skip
    for ordinal in range(TASKS):
        insert(db, "tasks", {"job_id": job, "ordinal": ordinal, "name": f"step {ordinal}", "state": "Succeeded",
                             "started": time(begin), "ended": time(end)})  # fmt: skip
    insert(db, "events", {"time": time(begin), "severity": "info", "code": "enabling", "message": f"protect {name}", "item_id": item,
                          "job_id": job, "details": "{}"})  # fmt: skip


def series(now: datetime, points: int, frequency_s: int) -> list[tuple[str, dict[str, Any]]]:
    """What adds to every item its points, and a day of figures by the minute and by the hour."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)"
    moment = "strftime('%Y-%m-%d %H:%M:%f', :base, '-' || ({}) || ' seconds') || '000'"
    statements: list[tuple[str, dict[str, Any]]] = [
        (
            (
                f"{numbers}, m AS MATERIALIZED (SELECT i, {moment.format('(:count - i) * :step')} AS time, printf('%032x', i) AS tail FROM n)"
                " INSERT INTO points (item_id, sequence, epoch, time, digest, kind, consistency, changed)"
                " SELECT id, i, 1, m.time, replace(id, '-', '') || tail, 'delta', 'crash', 1048576 FROM items, m ORDER BY id, i"
            ),
            {"count": points, "base": time(now), "step": frequency_s},
        )
    ]
    minute, hour = now.replace(second=0, microsecond=0), now.replace(minute=0, second=0, microsecond=0)
    for step, count, base, length in (("minute", MINUTES, minute, 60), ("hour", 24, hour, 3600)):
        statements.append(
            (
                (
                    f"{numbers}, m AS MATERIALIZED (SELECT i, {moment.format('i * :length')} AS time FROM n)"
                    " INSERT INTO samples (item_id, step, time, rpo_median_s, rpo_largest_s, expected, cycles, failed, bytes_changed,"
                    " bytes_shipped, tracking_lost, resyncs, timed, seconds, seconds_largest, changed_largest, shipped_largest)"
                    " SELECT id, :step, m.time, 3.0, 6.0, :cycles, :cycles, 0, :cycles << 20, :cycles << 19, 0, 0, :cycles, 4.0, 0.5,"
                    " 1048576, 524288 FROM items, m ORDER BY id, i DESC"
                ),
                {
                    "count": count,
                    "base": time(base),
                    "length": length,
                    "step": step,
                    "cycles": length // frequency_s,
                },
            )
        )
    return statements


def machine(vm: str, name: str, labels: dict[str, Any] | None) -> dict[str, Any]:
    """A machine as an inventory has it."""
    disk = {"key": "vda", "path": f"/srv/images/{name}.qcow2", "format": "qcow2", "size": 64 << 30, "bus": "virtio", "device": "disk",
            "readonly": False, "shareable": False, "replicable": True, "problems": []}  # fmt: skip
    return {"uuid": vm, "name": name, "power": "running", "io_error": False, "disks": [disk],
            "nics": [{"mac": "52:54:00:00:00:01", "network": "lan", "model": "virtio"}], "problems": [], "labels": labels,
            "locked": None, "agent": False, "protectable": True}  # fmt: skip


def insert(db: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """Insert one row."""
    db.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
        list(row.values()),
    )


def time(moment: datetime) -> str:
    """A time as SQLAlchemy keeps it in SQLite."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")
