"""The drill of two sides: a host dies and comes back while its machine runs at the other site. It never runs twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import libvirt
import pytest

from secondsite.fabric.libvirt_power import locked
from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import ItemId
from secondsite.node.records import ItemRecord, Role
from secondsite.node.report import standing_still
from support.hypervisors import HypervisorPair
from support.node_pair import NodePair, node_pair, wait_until
from support.tracked_machines import TrackedMachine
from support.two_sides import (
    MIB,
    PLAIN,
    SIZE,
    VDA,
    VDB,
    contents,
    destroy,
    differing,
    equals_image,
    last_point,
    replica_write,
    reverse,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

NAME = "drill-a"
WAIT_S = 120.0


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair) -> Iterator[NodePair]:
    with node_pair(short_path, hypervisor_pair) as pair:
        yield pair


class Watch:
    """Looks at both hypervisors all along, and counts the copies that run."""

    def __init__(self, pair: HypervisorPair) -> None:
        self._pair = pair
        self._stop = threading.Event()
        self.samples = 0
        self.most = 0
        self.seen: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        connections: dict[str, libvirt.virConnect] = {}
        while not self._stop.wait(0.05):
            running = [h.directory.name for h in self._pair if self._runs(h, connections)]
            self.samples += 1
            self.most = max(self.most, len(running))
            self.seen.update(running)

    def _runs(self, hypervisor: Hypervisor, connections: dict[str, libvirt.virConnect]) -> bool:
        key = hypervisor.directory.name
        try:
            if key not in connections:
                connections[key] = hypervisor.connect()
            state, _reason = connections[key].lookupByName(NAME).state()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                connections.pop(key, None)  # its daemon was killed: asked again through a new one
            return False
        return bool(state == libvirt.VIR_DOMAIN_RUNNING)


@contextmanager
def daemon(state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node's daemon in a process of its own; no service answers it. Killed at the end if it still runs."""
    (state / "ready.json").unlink(missing_ok=True)
    with (state / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "secondsite", "node", "run", "--state", str(state)],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until((state / "ready.json").exists, WAIT_S, "the daemon")
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(30)


def record_of(state: Path, item: ItemId) -> ItemRecord:
    return ItemRecord.from_json((state / "items" / item / "record.json").read_text())


def test_a_host_that_comes_back_after_its_machine_was_failed_over_runs_no_second_copy(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    here, there = hypervisor_pair
    machine = TrackedMachine(here, here.storage, NAME, {VDA: SIZE, VDB: SIZE})
    state = nodes.primary.state
    try:
        with Watch(hypervisor_pair) as watch:
            machine.domain.setAutostart(1)
            machine.start()
            machine.domain.resume()
            machine.write(VDA, 0, b"\x01" * (6 * MIB))
            item = nodes.protect(NAME, {VDA: SIZE, VDB: SIZE}, policy=PLAIN)
            wait_until(lambda: last_point(nodes.recovery, item), WAIT_S, "the first point")
            assert machine.domain.autostart() == 0
            nodes.primary.close()

            # The host dies: what was written last is in no point.
            with daemon(state) as first:
                before = last_point(nodes.recovery, item)
                wait_until(
                    lambda: last_point(nodes.recovery, item) > before + 1, WAIT_S, "points without a service"
                )
                first.send_signal(signal.SIGSTOP)
                machine.io(VDA, f"write -P 3 {MIB} {2 * MIB}", "flush")
                machine.io(VDB, f"write -P 4 {40 * MIB} {MIB}", "flush")
                first.kill()
                first.wait(30)
                for guest in here.guests():
                    os.kill(guest.pid, signal.SIGKILL)
                wait_until(lambda: not here.guests(), WAIT_S, "the guest's end")
            (state / "run" / "booted").unlink()

            # The other site takes over, and its listener cannot be reached.
            point = last_point(nodes.recovery, item)
            args = {"sequence": point, "digest": None, "new_epoch": 2, "name": NAME, "networks": {}}
            nodes.recovery.call("target.failover", item, 1, args)
            replica_write(there, NAME, VDA, 20 * MIB, 2 * MIB, 5)
            nodes.recovery.daemon.listener.stop()

            # The host boots: its hypervisor starts nothing, and the node holds what it may not run.
            here.stop_daemon()
            here.start()
            machine.reconnect(here)
            with daemon(state):
                wait_until(
                    lambda: "the service does not answer" in str(record_of(state, item).held),
                    WAIT_S,
                    "nobody answers",
                )
                assert not machine.domain.isActive()
                report = standing_still(record_of(state, item))
                assert (report["phase"], report["error"]["code"]) == ("held", "held")
                assert "does not confirm it" in report["error"]["message"]

                # Somebody starts it by hand, or libvirt-guests does: it is paused as soon as it is seen.
                samples = watch.samples
                wait_until(lambda: watch.samples > samples + 20, WAIT_S, "samples")
                assert watch.most == 1

                # The network heals: it learns that it was superseded.
                nodes.recovery.close()
                nodes.recovery.start()
                wait_until(lambda: record_of(state, item).role is Role.STANDBY, WAIT_S, "stepping down")
                record = record_of(state, item)
                assert (record.epoch, record.ran, record.diverged, record.held) == (2, True, True, None)
                # The record comes first: a node that is killed in between locks it at its next start.
                wait_until(lambda: locked(machine.domain) is not None, WAIT_S, "the lock")
            with pytest.raises(libvirt.libvirtError):
                machine.domain.create()
            old = {disk: machine.content(disk, short_path) for disk in (VDA, VDB)}

            # The way back: what the old side alone had is kept, and only what differs is shipped.
            nodes.primary.start()
            kept = reverse(nodes.recovery, nodes.primary, item, 2, after=point)
            assert kept["base"] == "diverged"
            replicator = nodes.recovery.daemon.replicators.find(item)
            assert replicator is not None
            wait_until(lambda: replicator.outcomes, WAIT_S, "a point in reverse")
            outcome = replicator.outcomes[0]
            divergent = differing(old, contents(nodes.primary, item, kept["sequence"] + 1))
            assert divergent >= 5 * MIB
            assert outcome.shipped <= 1.1 * divergent, outcome
            held = contents(nodes.primary, item, kept["sequence"])
            for disk in (VDA, VDB):
                assert held[disk] == old[disk]
                assert equals_image(held[disk], machine.images[disk], short_path)
            assert (watch.most, len(watch.seen)) == (1, 2)
            assert watch.samples > 100
        nodes.recovery.call("source.stop", item, 2)
        nodes.primary.call("target.remove", item, 2, {"delete_replica": False})
    finally:
        destroy(there, NAME)


def test_a_source_that_was_cut_off_stops_by_itself_when_it_meets_the_running_other_side(
    nodes: NodePair, short_path: Path, hypervisor_pair: HypervisorPair
) -> None:
    """No service, no boot: the link alone was down, and an operator took over at the other site."""
    here, there = hypervisor_pair
    name = "drill-b"
    machine = TrackedMachine(here, here.storage, name, {VDA: SIZE})
    try:
        machine.start()
        machine.write(VDA, 0, b"\x01" * MIB)
        item = nodes.protect(name, {VDA: SIZE}, policy=PLAIN)
        wait_until(lambda: last_point(nodes.recovery, item), WAIT_S, "the first point")
        args = {"sequence": None, "digest": None, "new_epoch": 2, "name": name, "networks": {}}
        nodes.recovery.call("target.failover", item, 1, args)
        nodes.primary.daemon.replicators.wake(item)
        wait_until(lambda: nodes.primary.daemon.items.get(item).role is Role.STANDBY, WAIT_S, "stepping down")
        wait_until(lambda: not machine.domain.isActive(), WAIT_S, "its end")
        assert nodes.primary.daemon.items.get(item).epoch == 2

        # Cancelled: the replica is given up, the machine goes on where it was, with its own bitmap.
        nodes.recovery.call("target.abandon", item, 2, {"epoch": 2, "next_epoch": 3})
        points = last_point(nodes.recovery, item)
        nodes.primary.call("source.release", item, 3, {"epoch": 3})
        assert machine.domain.isActive()
        wait_until(lambda: last_point(nodes.recovery, item) > points, WAIT_S, "a point after the cancelling")
        record = nodes.primary.daemon.items.get(item)
        assert (record.role, record.counters.get("resyncs", 0)) == (Role.SOURCE, 0)
        nodes.primary.call("source.stop", item, 3)
        nodes.recovery.call("target.remove", item, 3, {"delete_replica": False})
    finally:
        destroy(there, name)
        destroy(here, name)
