"""Who dies in the kill matrix, and how it is found at the moment when it is to die.

Our own processes and libvirtd are started again at once, as a supervisor does; a view server and a QEMU are not: what is to become of
them is the product's business, or an operator's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import libvirt

from secondsite import processes
from secondsite.errors import SecondSiteError
from secondsite.lab.processes import Process
from support.lab_story import LabGuest, LabStory


class Victim(StrEnum):
    """Which process dies."""

    SERVICE = "service"
    SOURCE = "node that runs it"
    TARGET = "node of the other side"
    VIEW = "view server"
    QEMU = "its QEMU"
    YOUNG = "a QEMU that starts"
    LIBVIRTD_HERE = "libvirtd that runs it"
    LIBVIRTD_THERE = "libvirtd of the other side"

    @property
    def is_machine(self) -> bool:
        """Whether the guest itself dies: it may then be off, and an operator starts it again."""
        return self in {Victim.QEMU, Victim.YOUNG}


@dataclass(frozen=True)
class Kill:
    """Who was killed; `site` is where a QEMU ran."""

    victim: Victim
    site: str = ""


Strike = Callable[[], Kill | None]
"""Kills once the victim is there; None as long as it is not."""


def strike(lab: LabStory, guest: LabGuest, victim: Victim, here: str, there: str) -> Strike:
    """Return what kills the victim. `here`: where the guest runs when the operation begins."""
    parts = {Victim.SERVICE: "service", Victim.SOURCE: here, Victim.TARGET: there}
    if victim in parts:
        return lambda: _part(lab, victim, parts[victim])
    daemons = {Victim.LIBVIRTD_HERE: here, Victim.LIBVIRTD_THERE: there}
    if victim in daemons:
        return lambda: _libvirtd(lab, victim, daemons[victim])
    if victim is Victim.VIEW:
        return lambda: _view(lab, (here, there))
    if victim is Victim.QEMU:
        return lambda: _running(lab, guest, (here, there))
    known = [process for site in (here, there) for process in _processes(lab, guest, site)]
    return lambda: _young(lab, guest, (there, here), known)


def _part(lab: LabStory, victim: Victim, part: str) -> Kill:
    lab.kill(part)
    lab.start(part)
    return Kill(victim)


def _libvirtd(lab: LabStory, victim: Victim, site: str) -> Kill:
    lab.kill_libvirtd(site)
    lab.hypervisor(site).start()
    return Kill(victim)


def _view(lab: LabStory, sites: Sequence[str]) -> Kill | None:
    for site in sites:
        folder = Path(lab.facts["sites"][site]["node_state"]) / "run"
        for pid_file in folder.glob("v*.pid"):
            view = processes.find(pid_file)
            if view is not None:
                with suppress(ProcessLookupError):
                    os.kill(view.pid, signal.SIGKILL)
                    return Kill(Victim.VIEW)
    return None


def _running(lab: LabStory, guest: LabGuest, sites: Sequence[str]) -> Kill | None:
    for site in sites:
        if runs(lab.connection(site), guest.name):
            for process in _processes(lab, guest, site):
                process.signal(signal.SIGKILL)
                return Kill(Victim.QEMU, site)
    return None


def _young(lab: LabStory, guest: LabGuest, sites: Sequence[str], known: Sequence[Process]) -> Kill | None:
    for site in sites:
        for process in _processes(lab, guest, site):
            if process not in known:
                process.signal(signal.SIGKILL)
                return Kill(Victim.YOUNG, site)
    return None


def _processes(lab: LabStory, guest: LabGuest, site: str) -> list[Process]:
    mark = f"guest={guest.name},"
    return [
        process
        for process in lab.hypervisor(site).guests()
        if any(argument.startswith(mark) for argument in process.command_line)
    ]


def runs(connection: libvirt.virConnect, name: str) -> bool:
    """Whether libvirt says that a machine of this name runs there."""
    try:
        return bool(connection.lookupByName(name).state()[0] == libvirt.VIR_DOMAIN_RUNNING)
    except (libvirt.libvirtError, SecondSiteError):
        return False
