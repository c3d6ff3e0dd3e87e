"""Hypervisors of the lab, with the real libvirtd."""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path

import pytest

from secondsite.errors import UnavailableError
from secondsite.lab import processes, tools
from secondsite.lab.console import ConsoleReader
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.recipe import Mode
from support.guests import running_guest
from support.hypervisors import HypervisorPair

pytestmark = pytest.mark.integration


def _unprivileged() -> Mode:
    return Mode.NOBODY if os.geteuid() == 0 else Mode.SESSION


def test_two_hypervisors_run_side_by_side_and_know_nothing_of_each_other(
    hypervisor_pair: HypervisorPair,
) -> None:
    connections = [hypervisor.connect() for hypervisor in hypervisor_pair]
    definition = (
        "<domain type='qemu'><name>only-here</name><memory>1</memory><os><type>hvm</type></os></domain>"
    )
    domain = connections[0].defineXML(definition)
    try:
        assert "only-here" in [each.name() for each in connections[0].listAllDomains()]
        assert "only-here" not in [each.name() for each in connections[1].listAllDomains()]
    finally:
        domain.undefine()
        for connection in connections:
            connection.close()


def test_a_hypervisor_starts_again_after_a_kill_that_left_its_socket(short_path: Path) -> None:
    hypervisor = Hypervisor(short_path / "h", "h")
    try:
        hypervisor.start()
        first = hypervisor.daemon
        hypervisor.stop_daemon(kill=True)
        assert not hypervisor.is_running
        hypervisor.start()
        assert hypervisor.daemon not in (None, first)
        hypervisor.connect().close()
    finally:
        hypervisor.stop()
    assert hypervisor.daemon is None
    assert hypervisor.guests() == []


def test_guests_outlive_their_daemon_and_are_found_again(short_path: Path, guest_files: GuestFiles) -> None:
    hypervisor = Hypervisor(short_path / "h", "h")
    with hypervisor:
        networks = hypervisor.define_networks()
        with running_guest(hypervisor, guest_files, "survivor", count=1, networks=networks[:1]) as guest:
            (process,) = hypervisor.guests()
            hypervisor.stop_daemon(kill=True)
            assert hypervisor.guests() == [process]
            hypervisor.start()
            assert hypervisor.guests() == [process]
            connection = hypervisor.connect()
            domain = connection.lookupByName("survivor")
            assert domain.isActive()
            assert hypervisor.define_networks() == networks
            with ConsoleReader(hypervisor, "survivor") as console:
                assert console.record() > 0
            connection.close()
            guest.domain = domain  # the connection of the first one went with the daemon


@pytest.mark.parametrize("unprivileged", [False, True])
def test_stop_ends_guests_and_networks_also_for_another_object(
    short_path: Path, guest_files: GuestFiles, *, unprivileged: bool
) -> None:
    first = Hypervisor(short_path / "h", "h", mode=_unprivileged() if unprivileged else None)
    first.start()
    first.define_networks()
    disks = create_disks(first.storage, "left", count=1, size=64 << 20, record_area=1 << 20)
    connection = first.connect()
    connection.defineXML(domain_xml("left", guest_files, [first.own(disk) for disk in disks])).create()
    connection.close()
    other = Hypervisor(short_path / "h", "h")
    assert other.is_running
    processes = [other.daemon, *other.guests()]
    assert len(processes) == 2
    other.stop()
    assert [process for process in processes if process is not None and process.alive] == []
    assert not first.is_running
    # The machine is still defined, as after a power cut, and starts again.
    with first:
        connection = first.connect()
        assert not connection.lookupByName("left").isActive()
        connection.close()


def test_a_start_after_daemon_and_guest_died_together_shows_no_dead_guest(
    short_path: Path, guest_files: GuestFiles
) -> None:
    with Hypervisor(short_path / "h", "h", mode=_unprivileged()) as hypervisor:
        disks = create_disks(hypervisor.storage, "dead", count=1, size=64 << 20, record_area=1 << 20)
        connection = hypervisor.connect()
        connection.defineXML(
            domain_xml("dead", guest_files, [hypervisor.own(disk) for disk in disks])
        ).create()
        connection.close()
        daemon = hypervisor.daemon
        assert daemon is not None
        # Held, so that it can't note the end of its guest: what it leaves says that the guest runs.
        daemon.signal(signal.SIGSTOP)
        assert processes.kill(hypervisor.guests()) == []
        hypervisor.stop_daemon(kill=True)
        hypervisor.start()
        connection = hypervisor.connect()
        assert not connection.lookupByName("dead").isActive()
        connection.close()


def test_a_missing_libvirtd_is_named_with_what_to_install(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "SYSTEM_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="libvirtd is not installed") as caught:
        Hypervisor(short_path / "h", "h", mode=Mode.SESSION).start()
    assert "libvirt-daemon" in caught.value.hint


def test_a_daemon_that_ends_at_once_is_quoted(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = short_path / "bin" / "libvirtd"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    hypervisor = Hypervisor(short_path / "h", "h", mode=Mode.SESSION)
    with pytest.raises(UnavailableError, match="no such luck"):
        hypervisor.start()
    assert not hypervisor.is_running


def test_root_without_namespaces_runs_guests_as_nobody(short_path: Path, guest_files: GuestFiles) -> None:
    with Hypervisor(short_path / "h", "h", mode=_unprivileged()) as hypervisor:
        assert not hypervisor.has_networks
        with running_guest(hypervisor, guest_files, "a-name-longer-than-20", count=1, agent=True) as guest:
            guest.wait_for_agent()
            (process,) = hypervisor.guests()
            user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
            assert Path(f"/proc/{process.pid}").stat().st_uid == user
        # Another object comes back to the folder as it was begun.
        assert Hypervisor(short_path / "h", "h").uri == hypervisor.uri
