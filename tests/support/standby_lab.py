"""A lab whose service keeps its store in PostgreSQL, with a second service that waits to take over.

Set up as docs/how-to/standby-service.md tells it: the second one has a copy of the folder that `service init` made, and nothing else;
the nodes and the command know both addresses.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondsite import durable, processes
from secondsite.api_client import ApiClient, Connection
from secondsite.lab import sites
from secondsite.service.daemon import init
from support.lab_story import LabStory, until
from support.leftovers import short_folder
from support.private_postgres import PrivatePostgres

READY_S = 90.0


@dataclass
class Peer:
    """One of the two services: its folder, its addresses, its process."""

    data: Path
    people_port: int
    nodes_port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.people_port}"

    @property
    def pid_file(self) -> Path:
        return self.data.with_suffix(".pid")

    @property
    def log_file(self) -> Path:
        return self.data.with_suffix(".log")

    @property
    def waits(self) -> bool:
        return (self.data / "standby.json").exists()

    def start_as_standby(self) -> None:
        """Start it and wait until it waits. What a killed one left is no sign of life."""
        for name in ("standby.json", "service.json"):
            (self.data / name).unlink(missing_ok=True)
        argv = [sys.executable, "-m", "secondsite", "service", "run", "--standby", "--data", str(self.data)]
        argv += ["--listen", f"127.0.0.1:{self.people_port}", "--node-listen", f"127.0.0.1:{self.nodes_port}"]
        ref = processes.spawn(argv, pid_file=self.pid_file, log_file=self.log_file)
        processes.wait_ready(
            lambda: self.waits, ref=ref, what="the standby", log_file=self.log_file, timeout_s=READY_S
        )

    def signal(self, number: int) -> None:
        found = processes.find(self.pid_file)
        assert found is not None, f"{self.data} is not served"
        os.kill(found.pid, number)

    def kill(self) -> None:
        """kill -9; return when it is gone."""
        self.signal(signal.SIGKILL)
        until(lambda: processes.find(self.pid_file) is None, "the service gone", 10, 0.005)

    def end(self) -> None:
        found = processes.find(self.pid_file)
        if found is not None:
            processes.terminate(found, timeout_s=30)


@dataclass
class StandbyLab:
    """The lab, and the two services: `active` and `standby` change places with each kill."""

    story: LabStory
    active: Peer
    standby: Peer
    database_url: str

    def change_places(self) -> None:
        """The killed one comes back as the standby of the other."""
        self.active, self.standby = self.standby, self.active
        self.standby.start_as_standby()

    def kill_active(self) -> None:
        self.active.kill()

    def orders(self, job: str) -> list[tuple[str, str]]:
        """What the job ordered: kinds and states, as the database has them."""
        from secondsite.service.store.database import Store
        from secondsite.service.store.tables import commands

        store = Store(self.database_url)
        try:
            with store.reading() as tx:
                found = tx.execute(
                    commands.select().where(commands.c.job_id == job).order_by(commands.c.ordinal)
                )
                return [(row.kind, row.state) for row in found]
        finally:
            store.close()


@contextmanager
def standby_lab() -> Iterator[StandbyLab]:
    """A lab with a warm standby, all ended at the end."""
    postgres = PrivatePostgres()
    try:
        with short_folder() as folder:
            lab = sites.Lab.make(folder / "lab")
            url = postgres.new_database()
            token = init(lab.service_data, "lab", url).token
            durable.write_atomic(lab.root / "token", token.encode())
            second = lab.root / "second"
            shutil.copytree(lab.service_data, second)
            one = Peer(lab.service_data, lab.service_port, lab.node_port)
            two = Peer(second, _free_port(), _free_port())
            environment = {"SECONDSITE_URL": f"{one.url} {two.url}"}
            story = LabStory(folder, environment=environment)
            try:
                story.up()
                _tell_nodes(story, [one, two])
                ca = Path(story.facts["ca"])
                story.api = ApiClient(Connection(one.url, token, ca, (two.url,)))
                two.start_as_standby()
                yield StandbyLab(story, one, two, url)
            finally:
                two.end()
                story.down()
    finally:
        postgres.close()


def _tell_nodes(story: LabStory, peers: list[Peer]) -> None:
    addresses = [f"127.0.0.1:{peer.nodes_port}" for peer in peers]
    for site in sites.SITES:
        said: Any = story.cli("node", "services", *addresses, "--state", str(story.lab.node_state(site)))
        assert said["services"] == addresses, json.dumps(said)
        story.kill(site)
        story.start(site)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
