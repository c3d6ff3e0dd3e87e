"""Lab guests for tests."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import libvirt

from secondsite.lab.console import ConsoleReader
from secondsite.lab.guest.builder import GuestBuilder, GuestFiles
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor


def built_guest(folder: Path) -> GuestFiles:
    """Build the guest (from the cache when it is there), readable for guests that run as another user."""
    return GuestBuilder().build().copy_to(folder / "boot")


@dataclass
class Guest:
    """A guest that is defined. `console` reads its present run; None when it was not started here."""

    hypervisor: Hypervisor
    domain: libvirt.virDomain
    disks: list[Path]
    console: ConsoleReader | None = None

    def start(self) -> ConsoleReader:
        """Start it with the console attached from the first line on; return once it has written a record."""
        if self.console is not None:
            self.console.close()
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        self.console = ConsoleReader(self.hypervisor, self.domain.name())
        self.domain.resume()
        self.console.wait_for(r"SS-FIRST|SS-CHECK|SS-FOLLOW")
        return self.console

    def wait_for_agent(self) -> None:
        """Wait until libvirt has the guest agent's channel (the guest needs `agent=True`)."""
        deadline = time.monotonic() + 20
        while "state='connected'" not in self.domain.XMLDesc():
            assert time.monotonic() < deadline, "the guest agent does not connect"
            time.sleep(0.02)

    def shut_down(self) -> int:
        """Press the power button; return the last record that it wrote, when it is off."""
        assert self.console is not None
        self.domain.shutdown()
        last = int(self.console.wait_for(r"SS-LAST n=(\d+)")[1])
        self.console.wait_for_end()
        return last


@contextmanager
def running_guest(
    hypervisor: Hypervisor,
    files: GuestFiles,
    name: str,
    *,
    disks: Sequence[Path] | None = None,
    count: int = 2,
    size: int = 128 << 20,
    image_format: str = "qcow2",
    record_area: int = 2 << 20,
    rate: int = 40,
    churn: int = 2,
    check: bool = False,
    say: bool = False,
    follow: bool = False,
    networks: Sequence[str] = (),
    agent: bool = False,
) -> Iterator[Guest]:
    """A guest that runs and writes records; at the end it is destroyed, undefined, and its own disks are deleted."""
    images = list(disks or ())
    if not images:
        images = create_disks(
            hypervisor.storage,
            name,
            count=count,
            size=size,
            image_format=image_format,
            record_area=record_area,
        )
    for image in images:
        hypervisor.own(image)
    connection = hypervisor.connect()
    try:
        xml = domain_xml(
            name,
            files,
            images,
            rate=rate,
            churn=churn,
            check=check,
            say=say,
            follow=follow,
            networks=networks,
            agent=agent,
        )
        guest = Guest(hypervisor, connection.defineXML(xml), images)
        try:
            guest.start()
            yield guest
        finally:
            if guest.console is not None:
                guest.console.close()
            with suppress(libvirt.libvirtError):  # it may be off
                guest.domain.destroy()
            with suppress(libvirt.libvirtError):  # the test may have undefined it
                guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    finally:
        connection.close()
        if not disks:
            for image in images:
                image.unlink(missing_ok=True)
