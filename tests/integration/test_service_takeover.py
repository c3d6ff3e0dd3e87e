"""A standby process takes over from an active one that was killed, or that lost its lock and lives: each order is given once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from secondsite.ship.client import Endpoint
from secondsite.ship.failover import ServiceClient
from secondsite.ship.identity import SERVICE
from support.patience import wait_until
from support.private_postgres import PrivatePostgres
from support.service_node import ServiceProcess, TwoSites, free_port

pytestmark = [pytest.mark.integration, pytest.mark.fault]


class StandbyProcess(ServiceProcess):
    """The command, as an administrator runs it; `start` returns when it waits."""

    def start(self, speed: float = 1.0) -> None:
        del speed
        self.nodes_port = free_port()
        argv = [sys.executable, "-m", "secondsite", "service", "run", "--standby", "--json"]
        argv += ["--data", str(self.data_dir), "--listen", f"127.0.0.1:{free_port()}"]
        argv += ["--node-listen", f"127.0.0.1:{self.nodes_port}"]
        with (self.data_dir.parent / f"{self.data_dir.name}.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log)
        wait_until((self.data_dir / "standby.json").exists, 60)

    def take_over(self) -> None:
        """Wait until it listens."""
        assert self.process is not None
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n") or text.count("{") != text.count("}"):
            line = self.process.stdout.readline()
            assert line, f"the standby ended: {self.log()}"
            text += line.decode()
        self.addresses = json.loads(text)


@dataclass
class Pair:
    """Two sites before two services."""

    sites: TwoSites
    active: ServiceProcess
    standby: StandbyProcess
    database: str
    token: str

    def follow(self) -> None:
        """Go on at the standby, as people do."""
        self.standby.take_over()
        self.sites.api.close()
        self.sites.service = self.standby
        self.sites.api = self.standby.people(self.token)

    def take_lock_away(self) -> None:
        """End the connection that holds the lock, and nothing else."""
        url = sa.make_url(self.database).set(drivername="postgresql").render_as_string(hide_password=False)
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND pid <> pg_backend_pid()"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )


@contextmanager
def running_pair(folder: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        postgres = PrivatePostgres()
        stack.callback(postgres.close)
        database = postgres.new_database()
        active = ServiceProcess(folder / "one", database)
        token = active.init()
        shutil.copytree(folder / "one", folder / "two")
        stack.callback(active.close)
        active.start()
        sites = TwoSites(active, token, folder)
        stack.callback(sites.close)
        standby = StandbyProcess(folder / "two")
        stack.callback(standby.close)
        standby.start()
        ports = (active.addresses["nodes"]["port"], standby.nodes_port)
        for node in sites.nodes:
            old = node.client
            endpoints = [Endpoint("127.0.0.1", port, SERVICE) for port in ports]
            node.client = ServiceClient(endpoints, node.credentials, timeout_s=10)  # type: ignore[assignment]
            old.close()
        yield Pair(sites, active, standby, database, token)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with running_pair(tmp_path) as found:
        yield found


def check_ended(pair: Pair, job: dict[str, object]) -> None:
    sites = pair.sites
    done = sites.job(job)
    assert done["state"] == "Succeeded", (done, pair.standby.log())
    item = sites.item()
    assert (item["state"], item["epoch"], item["active_side"]) == ("commit-pending", 2, "recovery")
    assert all(count == 1 for node in sites.nodes for count in node.ran.values())
    assert [kind for kind in sites.a.kinds() if kind != "source.start"] == ["source.prepare", "source.demote"]
    assert [kind for kind in sites.b.kinds() if kind != "target.create"] == ["target.failover"]


def test_a_killed_services_failover_is_ended_by_the_standby(pair: Pair) -> None:
    sites = pair.sites
    sites.protect()
    reached = sites.a.hold("source.demote")
    job = sites.post("/items/web-1/planned-failover")
    assert reached.wait(20)
    pair.active.kill()
    sites.a.let_go("source.demote")
    pair.follow()
    check_ended(pair, job)
    sites.succeed("commit")
    sites.succeed("reverse")


def test_a_service_that_lost_its_lock_ends_and_the_standby_goes_on(pair: Pair) -> None:
    sites = pair.sites
    sites.protect()
    reached = sites.b.hold("target.failover")
    job = sites.post("/items/web-1/planned-failover")
    assert reached.wait(20)
    pair.take_lock_away()
    assert pair.active.process is not None
    assert pair.active.process.wait(60) != 0
    assert "the lock on the database was lost" in pair.active.log()
    pair.follow()
    sites.b.let_go("target.failover")
    check_ended(pair, job)
