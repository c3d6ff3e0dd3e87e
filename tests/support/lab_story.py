"""A lab as a newcomer has it: `secondsite lab up`, a guest in the first site's libvirt, everything else by commands.

Beside the commands there is what a story needs to do harm and to judge: kill and start parts, wait for conditions over
the API, take points out of the journal, look at disks and processes.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import libvirt
import numpy as np

from secondsite import processes
from secondsite.api_client import ApiClient, Connection
from secondsite.errors import SecondSiteError
from secondsite.journal import Journal, PointInfo
from secondsite.journal.extract import extract_all
from secondsite.lab import sites
from secondsite.lab.console import ConsoleReader
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.records import RecordCheck, check_records
from secondsite.model.ids import Sequence as PointSequence
from secondsite.model.units import BLOCK
from secondsite.nbd.image import base_opener
from support.guests import built_guest
from support.leftovers import short_folder

T = TypeVar("T")
SECONDSITE = (sys.executable, "-m", "secondsite")
MIB = 1 << 20


def until(holds: Callable[[], T], what: str, timeout_s: float = 60, every_s: float = 0.1) -> T:
    """Return what `holds` returns once it is true; errors of the product count as "not yet"."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            last = found = holds()
            if found:
                return found
        except SecondSiteError as error:
            last = error
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; last: {last}"
        time.sleep(every_s)


@dataclass
class LabGuest:
    """A guest of the lab, wherever it runs: ask for a console or its disks by site."""

    lab: LabStory
    name: str

    def domain(self, site: str) -> libvirt.virDomain:
        return self.lab.connection(site).lookupByName(self.name)

    def active(self, site: str) -> bool:
        try:
            return bool(self.domain(site).isActive())
        except libvirt.libvirtError:
            return False

    def start(self) -> ConsoleReader:
        """Start it at the first site with the console attached from the first line on; it has written a record then."""
        domain = self.domain("primary")
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        console = self.console("primary")
        domain.resume()
        console.wait_for("SS-FIRST|SS-FOLLOW", 60)
        return console

    def console(self, site: str, name: str | None = None) -> ConsoleReader:
        return ConsoleReader(self.lab.hypervisor(site), name or self.name)

    def disks(self, site: str) -> list[Path]:
        """The images that the definition at the site names, in the guest's order."""
        xml = self.domain(site).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return disks_of(xml)

    def qemu_pid(self, site: str) -> int:
        folder = self.lab.root / site
        for process in self.lab.hypervisor(site).guests():
            arguments = process.command_line
            if f"guest={self.name}," in " ".join(arguments):
                return process.pid
        raise AssertionError(f"no QEMU of {self.name} below {folder}")


def disks_of(xml: str) -> list[Path]:
    found = ET.fromstring(xml).findall("devices/disk[@device='disk']/source")
    # A machine that is locked names a file that nobody has.
    return [path for source in found if (path := Path(source.attrib["file"])).exists()]


class LabStory:
    """See the module's docstring."""

    def __init__(
        self, folder: Path, *, prefix: Sequence[str] = (), environment: dict[str, str] | None = None
    ):
        self.folder = folder / "lab"
        self._prefix = tuple(prefix)
        self._environment = environment or {}
        self._boot = folder
        self._files: GuestFiles | None = None
        self._stack = ExitStack()
        self._connections: dict[str, libvirt.virConnect] = {}

    # -- life

    def up(self) -> None:
        self.facts = self.cli("lab", "up", "--dir", str(self.folder))
        self.lab = sites.Lab.load(self.folder)
        self.root = self.lab.root
        ca = Path(self.facts["ca"])
        self.api = ApiClient(Connection(self.facts["url"], self.facts["token"], ca))

    def down(self) -> None:
        for connection in self._connections.values():
            with suppress(libvirt.libvirtError):
                connection.close()
        if (self.folder / "lab.json").exists():
            self.cli("lab", "down", "--dir", str(self.folder), "--purge")
        assert not self.folder.exists()

    # -- commands

    def start_cli(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "SECONDSITE_CONFIG": str(self.folder / "cli.json"), **self._environment}
        return subprocess.Popen(
            [*self._prefix, *SECONDSITE, *arguments, "--json"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cli(self, *arguments: str, timeout_s: float = 120) -> Any:
        """Run a command with --json and return what it printed; it must succeed."""
        return self.finished(self.start_cli(*arguments), timeout_s)

    @staticmethod
    def finished(process: subprocess.Popen[str], timeout_s: float = 120) -> Any:
        try:
            out, error = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert process.returncode == 0, f"{process.args} ended with {process.returncode}:\n{out}\n{error}"
        return json.loads(out)

    def protect(self, name: str) -> Any:
        """Protect a machine once the inventory shows it."""
        self.known(name)
        return self.cli("item", "protect", name)

    def known(self, name: str) -> None:
        """Wait until it can be protected: an inventory of the moment in which it started may not tell its disks' sizes."""
        until(
            lambda: any(
                row["name"] == name and row["ready"] and all(disk["size"] for disk in row["disks"])
                for row in self.api.get("/protectable-items")
            ),
            f"{name} in the inventory",
        )

    def item(self, name: str) -> Any:
        return self.api.get(f"/items/{name}")

    def source(self, name: str) -> Any:
        """The last report of the source's node about the item."""
        return self.item(name)["replication"]["source"]

    def policy(self, **fields: Any) -> None:
        self.api.patch(f"/policies/{self.facts['policy']}", fields)

    # -- parts and processes

    def hypervisor(self, site: str) -> Hypervisor:
        return self.lab.hypervisor(site)

    def connection(self, site: str) -> libvirt.virConnect:
        connection = self._connections.get(site)
        if connection is None:
            connection = self._connections[site] = self.hypervisor(site).connect()
        return connection

    def pid(self, part: str) -> int:
        """The pid of "service" or of the node at a site."""
        found = processes.find(self.lab.pid_file(part))
        assert found is not None, f"{part} does not run"
        return found.pid

    def signal(self, part: str, number: int) -> None:
        os.kill(self.pid(part), number)

    def kill(self, part: str) -> None:
        """End the part at once; return when it is gone."""
        found = processes.find(self.lab.pid_file(part))
        assert found is not None, f"{part} does not run"
        os.kill(found.pid, signal.SIGKILL)
        until(lambda: processes.find(self.lab.pid_file(part)) is None, f"{part} gone", 10, 0.005)

    def start(self, part: str) -> None:
        if part == "service":
            sites.start_service(self.lab)
        else:
            sites.start_node(self.lab, part)

    def kill_libvirtd(self, site: str) -> None:
        """End libvirtd at once; its guests run on."""
        self._disconnect(site)
        self.hypervisor(site).stop_daemon(kill=True)

    def _disconnect(self, site: str) -> None:
        connection = self._connections.pop(site, None)
        if connection is not None:
            with suppress(libvirt.libvirtError):
                connection.close()

    def lose_site(self, site: str) -> None:
        """The host goes away without a word: its node, its libvirtd and its guests, at once."""
        self._disconnect(site)
        self.kill(site)
        self.hypervisor(site).stop()
        # A boot of the host empties the folder in which the node notes that it has run since.
        (self.lab.node_state(site) / "run" / "booted").unlink(missing_ok=True)

    def site_back(self, site: str) -> None:
        """The host boots: its libvirtd, then its node."""
        hypervisor = self.hypervisor(site)
        hypervisor.start()
        if hypervisor.has_networks:
            hypervisor.define_networks()
        self.start(site)

    def restart_missing(self) -> None:
        """Bring up what does not run, as somebody would who knows nothing."""
        if any(processes.find(self.lab.pid_file(part)) is None for part in ("service", *sites.SITES)):
            self.cli("lab", "up", "--dir", str(self.folder))

    # -- guests

    def files(self) -> GuestFiles:
        """What guests boot from."""
        self._files = self._files or built_guest(self._boot)
        return self._files

    def guest(
        self,
        name: str,
        *,
        count: int = 2,
        size: int = 96 * MIB,
        rate: int = 10,
        churn: int = 1,
        record_area: int = 4 * MIB,
        agent: bool = False,
        say: bool = False,
        follow: bool = False,
    ) -> LabGuest:
        """Make the disks of a guest and define it at the first site, off."""
        files = self.files()
        hypervisor = self.hypervisor("primary")
        disks = create_disks(hypervisor.storage, name, count=count, size=size, record_area=record_area)
        for disk in disks:
            hypervisor.own(disk)
        networks = ["lab-prod"] if hypervisor.has_networks else []
        self.connection("primary").defineXML(
            domain_xml(
                name,
                files,
                disks,
                rate=rate,
                churn=churn,
                networks=networks,
                agent=agent,
                say=say,
                follow=follow,
            )
        )
        return LabGuest(self, name)

    def give_up(self, guest: LabGuest) -> None:
        """Protect the guest no longer and end it: a machine that writes on takes its part from every other story."""
        self.cli("item", "disable", guest.name)
        for site in sites.SITES:
            if guest.active(site):
                guest.domain(site).destroy()

    # -- points

    def journal(self, name: str, site: str = "secondary") -> Path:
        return Path(self.facts["sites"][site]["journals"]) / self.item(name)["id"]

    def points(self, name: str, site: str = "secondary") -> list[PointInfo]:
        """What the journal's files say, without any of our processes."""
        with Journal.open(self.journal(name, site), writable=False) as journal:
            return journal.points()

    def newest(self, name: str, site: str = "secondary") -> int:
        return self.points(name, site)[-1].sequence

    def wait_for_points(
        self, name: str, more: int = 1, *, site: str = "secondary", timeout_s: float = 60
    ) -> int:
        """Wait until so many further points were sealed; return the newest one's sequence."""
        before = self.newest(name, site)

        def sealed() -> int | None:
            newest = self.newest(name, site)
            return newest if newest >= before + more else None

        return until(sealed, f"{more} points after {before}", timeout_s) or 0

    def extract(self, name: str, sequence: int, site: str = "secondary") -> list[Path]:
        """Take a point out, each byte compared with its digest; return its disks in the guest's order."""
        output = self._boot / f"out-{name}-{sequence}-{time.monotonic_ns()}"
        # A journal whose base was adopted is read beside the node that writes it.
        run = Path(self.facts["sites"][site]["node_state"]) / "run"
        with (
            Journal.open(self.journal(name, site), writable=False, open_base=base_opener(run)) as journal,
            journal.view(PointSequence(sequence), purpose="test", verify=True) as view,
        ):
            return extract_all(view, sorted(view.disks), output, suffix="raw")

    def check_point(self, name: str, sequence: int, site: str = "secondary") -> RecordCheck:
        """Extract a point and judge it by the guest's own records."""
        disks = self.extract(name, sequence, site)
        found = check_records(disks)
        for disk in disks:
            disk.unlink()
        assert found.ok, f"point {sequence}: {found.problems}"
        return found

    def fingerprint(self, name: str, sequence: int) -> list[str]:
        """Extract a point and return a digest of each disk."""
        disks = self.extract(name, sequence)
        digests = [blake2b(disk.read_bytes()).hexdigest() for disk in disks]
        for disk in disks:
            disk.unlink()
        return digests


def differing_blocks(before: Sequence[Path], after: Sequence[Path]) -> int:
    """Count the 4 KiB blocks in which two sets of raw disks differ."""
    total = 0
    for old, new in zip(before, after, strict=True):
        assert old.stat().st_size == new.stat().st_size
        with old.open("rb") as left, new.open("rb") as right:
            while piece := left.read(4 * MIB):
                a = np.frombuffer(piece, np.uint8).reshape(-1, BLOCK)
                b = np.frombuffer(right.read(4 * MIB), np.uint8).reshape(-1, BLOCK)
                total += int((a != b).any(axis=1).sum())
    return total


@contextmanager
def running_lab(
    *, prefix: Sequence[str] = (), environment: dict[str, str] | None = None
) -> Iterator[LabStory]:
    """A lab of the caller's own, ended and removed whatever happens."""
    with short_folder() as folder:
        story = LabStory(folder, prefix=prefix, environment=environment)
        try:
            story.up()
            yield story
        finally:
            story.down()


def tls(ca: Path | None = None) -> ssl.SSLContext:
    """A context that trusts anybody: for knocking at doors."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
