"""After a boot of its host a protected machine runs only when someone confirmed that it may; who was superseded stops."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    StaleEpochError,
    TimeoutExceededError,
    UnavailableError,
)
from secondsite.fabric.port import PowerState
from secondsite.model.ids import Epoch, NodeId
from secondsite.node.autostart import look_at
from secondsite.node.records import Held, ItemRecord, Role
from secondsite.node.report import standing_still
from secondsite.node.source.gate import Gate
from secondsite.node.source.held import START_ORDER, order_start, sentence_for, wait_for_start
from support.journals import ITEM
from support.power import unsynced
from support.role_world import Killed, SourceSide, TargetSide, killed_at

US = NodeId("node-us")
SILENT = UnavailableError("no route to host")


class FakeStanding:
    """What the others say: an epoch, or an error. None of them answers at first."""

    def __init__(self) -> None:
        self.at_target: int | Exception = SILENT
        self.at_service: Mapping[str, Mapping[str, Any]] | Exception = SILENT
        self.asked: list[str] = []

    def target(self, record: ItemRecord) -> Epoch:
        self.asked.append("target")
        if isinstance(self.at_target, Exception):
            raise self.at_target
        return Epoch(self.at_target)

    def service(self) -> Mapping[str, Mapping[str, Any]]:
        self.asked.append("service")
        if isinstance(self.at_service, Exception):
            raise self.at_service
        return self.at_service


class Host:
    """A source's host: it boots, and its daemon looks."""

    def __init__(self, root: Path, *, power: PowerState = PowerState.RUNNING, autostart: bool = True) -> None:
        self.side = SourceSide(root, power=power, autostart=autostart)
        self.others = FakeStanding()
        self.boots = 0
        self.gate = self._gate()
        (self.side.folders.run / "booted").write_text("boot-0")
        self.gate.begin()
        self.look()

    def _gate(self) -> Gate:
        side, boot = self.side, f"boot-{self.boots}"
        return Gate(
            side.items,
            side.replicators,  # type: ignore[arg-type]
            side.fabric,
            side.folders.run,
            self.others,
            US,
            lambda: boot,
        )

    def restart_daemon(self) -> None:
        """Only the daemon ends and begins."""
        self.side.reopen()
        self.gate = self._gate()
        self.gate.begin()

    def boot(self, *, starts_machines: bool = False) -> None:
        """The host went down and comes back; its hypervisor starts what is set to start."""
        self.side.fabric.power_off(self.side.vm)
        if starts_machines or self.side.fabric.autostart(self.side.vm):
            with suppress(Exception):
                self.side.fabric.start(self.side.vm)
        self.boots += 1
        self.restart_daemon()
        self.side.replicators.running = False

    def look(self) -> None:
        """One round of everything."""
        self.gate.look()
        self.gate.ask()

    @property
    def held(self) -> Held | None:
        return self.side.record.held

    @property
    def state(self) -> tuple[PowerState, bool, bool]:
        """Power, whether it is held, whether it is replicated."""
        return self.side.power, self.held is not None, self.side.replicators.running


RUNS = (PowerState.RUNNING, False, True)
HELD = (PowerState.OFF, True, False)


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.side.close()


def active(epoch: int) -> StaleEpochError:
    return StaleEpochError("this node is active for web", role="active", current=epoch)


# -- autostart -----------------------------------------------------------------------------------------------


def test_the_node_takes_the_autostart_over_whenever_somebody_sets_it_and_gives_it_back(host: Host) -> None:
    side = host.side
    assert (side.record.autostart, side.fabric.autostart(side.vm)) == (True, False)
    side.fabric.set_autostart(side.vm, on=True)
    host.look()
    assert side.fabric.autostart(side.vm) is False
    vm = side.vm
    side.done("source.stop")
    assert side.fabric.autostart(vm) is True


def test_a_machine_that_never_started_with_its_host_does_not_after_its_protection(tmp_path: Path) -> None:
    host = Host(tmp_path, autostart=False)
    host.side.done("source.stop")
    assert host.side.fabric.autostart(host.side.vm) is False
    host.side.close()


def test_the_autostart_is_not_lost_when_taking_it_over_is_cut(host: Host) -> None:
    side = host.side
    for at in range(4):
        side.items.change(ITEM, autostart=False)
        side.fabric.set_autostart(side.vm, on=True)
        with killed_at(side, at), suppress(Killed):
            look_at(side.items, side.fabric, side.record)
        side.reopen()
        look_at(side.items, side.fabric, side.record)
        assert (side.record.autostart, side.fabric.autostart(side.vm)) == (True, False)


# -- after a boot --------------------------------------------------------------------------------------------


def test_a_restart_of_the_daemon_alone_holds_nothing(host: Host) -> None:
    host.restart_daemon()
    host.look()
    assert (host.held, host.side.power, host.others.asked) == (None, PowerState.RUNNING, [])


def test_nobody_answers_so_the_machine_stays_off_and_the_report_says_why(host: Host) -> None:
    """The hypervisor had started it at the boot, while the other side ran it."""
    host.boot()
    host.look()
    assert host.state == HELD
    assert host.others.asked == ["target", "service"]
    report = standing_still(host.side.record)
    assert (report["phase"], report["error"]["code"]) == ("held", "held")
    assert "no route to host" in report["error"]["message"]
    host.restart_daemon()
    host.look()
    assert host.state == HELD


@pytest.mark.parametrize("who", ["target", "service"])
def test_a_machine_is_started_and_replicated_once_its_epoch_is_confirmed(host: Host, who: str) -> None:
    host.boot()
    host.look()
    if who == "target":
        host.others.at_target = 1
    else:
        host.others.at_service = {ITEM: {"epoch": 1, "source": US}}
    host.look()
    assert host.state == RUNS


def test_a_machine_that_was_off_when_its_host_went_down_stays_off_and_is_replicated(host: Host) -> None:
    host.side.fabric.power_off(host.side.vm)
    host.look()
    host.boot()
    host.others.at_target = 1
    host.look()
    assert host.state == (PowerState.OFF, False, True)


def test_a_machine_without_autostart_is_not_started_by_its_hosts_boot(tmp_path: Path) -> None:
    host = Host(tmp_path, autostart=False)
    host.boot()
    host.others.at_target = 1
    host.look()
    assert host.state == (PowerState.OFF, False, True)
    host.side.close()


def test_a_machine_that_was_started_unconfirmed_is_paused_until_it_is_confirmed(host: Host) -> None:
    host.boot(starts_machines=True)
    host.look()
    assert host.state == (PowerState.PAUSED, True, False)
    host.restart_daemon()
    host.look()
    host.others.at_target = 1
    host.look()
    assert host.state == RUNS


def test_what_an_operator_paused_before_is_not_resumed(host: Host) -> None:
    host.boot(starts_machines=True)
    host.side.fabric.suspend(host.side.vm)
    host.look()
    host.others.at_target = 1
    host.look()
    assert host.state == (PowerState.PAUSED, False, True)


@pytest.mark.parametrize("starts_machines", [False, True])
@pytest.mark.parametrize("who", ["target", "service"])
def test_a_machine_that_another_side_took_over_steps_down_at_once(
    host: Host, who: str, starts_machines: bool
) -> None:
    host.boot(starts_machines=starts_machines)
    host.look()
    if who == "target":
        host.others.at_target = active(2)
    else:
        host.others.at_service = {ITEM: {"epoch": 2, "source": "other"}}
    host.look()
    record = host.side.record
    assert (record.role, record.epoch, record.ran, record.diverged, record.held) == (
        Role.STANDBY,
        2,
        True,
        True,
        None,
    )
    assert (host.side.power, host.side.locked, host.side.replicators.running) == (PowerState.OFF, True, False)


@pytest.mark.parametrize(
    ("target", "service"),
    [
        (3, {ITEM: {"epoch": 1, "source": US}}),  # cancelled: the order to go on is under way
        (active(1), {ITEM: {"epoch": 1, "source": US}}),
        (StaleEpochError("prepared", role="prepared", current=2), {}),
        (SILENT, {}),
        (SILENT, {ITEM: {"epoch": 2, "source": US}}),
        (SILENT, {ITEM: {"epoch": 1, "source": "other"}}),
        (SILENT, {ITEM: {}}),
    ],
)
def test_answers_that_confirm_nothing_leave_the_machine_held(
    host: Host, target: int | Exception, service: Mapping[str, Mapping[str, Any]]
) -> None:
    host.boot()
    host.others.at_target, host.others.at_service = target, service
    host.look()
    assert host.state == HELD
    assert host.held is not None
    assert host.held.reason


def test_an_order_of_the_service_ends_the_holding(host: Host) -> None:
    host.boot()
    host.look()
    host.side.done("source.release", 3, epoch=3, start=True)
    assert host.state == RUNS
    host.boot()
    host.look()
    assert host.side.done("source.demote", 4, new_epoch=4) == {"ran": True, "diverged": True}
    host.look()
    assert (host.side.record.role, host.side.locked) == (Role.STANDBY, True)


def test_a_start_that_fails_is_tried_again(host: Host) -> None:
    host.boot()
    host.others.at_target = 1
    host.side.fabric.fail("start", UnavailableError("the network default is not active"))
    host.look()
    assert host.state == HELD
    host.look()
    assert host.state == RUNS


# -- the other site's host boots -----------------------------------------------------------------------------


class RecoveryHost:
    """The host on which a failed-over machine runs."""

    def __init__(self, root: Path) -> None:
        self.side = TargetSide(root)
        (self.side.folders.run / "booted").write_text("first")
        self.others = FakeStanding()
        self.side.fail_over(2)
        self.side.settle()
        self.gate = self._gate("first")
        self.gate.look()

    def _gate(self, boot: str) -> Gate:
        side = self.side
        return Gate(
            side.items,
            side.replicators,  # type: ignore[arg-type]
            side.fabric,
            side.folders.run,
            self.others,
            US,
            lambda: boot,
        )

    def boot(self, *, starts_machines: bool = False) -> None:
        self.side.fabric.power_off(self.side.record.vm)
        if starts_machines:
            self.side.fabric.start(self.side.record.vm)
        self.side.reopen()
        self.gate = self._gate("second")
        self.gate.begin()

    def look(self) -> None:
        self.gate.look()
        self.gate.ask()

    @property
    def power(self) -> PowerState:
        return self.side.fabric.power(self.side.record.vm)


@pytest.fixture
def recovery(tmp_path: Path) -> Iterator[RecoveryHost]:
    host = RecoveryHost(tmp_path)
    yield host
    host.side.close()


@pytest.mark.parametrize("starts_machines", [False, True])
def test_a_failed_over_machine_runs_again_after_its_hosts_boot_when_the_service_says_so(
    recovery: RecoveryHost, starts_machines: bool
) -> None:
    recovery.boot(starts_machines=starts_machines)
    recovery.look()
    assert recovery.power is (PowerState.PAUSED if starts_machines else PowerState.OFF)
    assert standing_still(recovery.side.record)["phase"] == "held"
    assert recovery.others.asked == ["service"]
    recovery.others.at_service = {ITEM: {"epoch": 2, "source": US}}
    recovery.look()
    assert (recovery.power, recovery.side.record.held) == (PowerState.RUNNING, None)
    assert recovery.side.replicators.running is False


def test_a_failed_over_machine_whose_failover_was_cancelled_meanwhile_stays_off(
    recovery: RecoveryHost,
) -> None:
    """An operator had confirmed that it does not run there, while its host was down; the source runs again."""
    recovery.boot()
    recovery.others.at_service = {ITEM: {"epoch": 3, "source": "other"}}
    recovery.look()
    assert (recovery.power, recovery.side.record.role) == (PowerState.OFF, Role.ACTIVE)
    recovery.side.done("target.abandon", 2, epoch=2, next_epoch=3)
    record = recovery.side.record
    assert (record.role, record.held, record.runs) == (Role.TARGET, None, False)


def test_an_operator_starts_a_held_machine_that_has_failed_over(recovery: RecoveryHost) -> None:
    recovery.boot()
    record = recovery.side.record
    folder, _record = order_start(recovery.side.folders.items, "web", sentence_for(record))
    recovery.look()
    wait_for_start(folder, 0)
    assert recovery.power is PowerState.RUNNING


def test_the_autostart_of_a_failed_over_machine_is_the_nodes_until_its_protection_ends(
    recovery: RecoveryHost,
) -> None:
    side = recovery.side
    vm = side.record.vm
    side.fabric.set_autostart(vm, on=True)
    recovery.look()
    assert side.fabric.autostart(vm) is False
    side.done("target.remove", 2)
    assert side.fabric.autostart(vm) is True


# -- the operator's way out ----------------------------------------------------------------------------------


def test_an_operator_starts_a_held_machine_with_a_sentence(host: Host) -> None:
    host.boot()
    host.look()
    items = host.side.folders.items
    for wrong in ("", "yes"):
        with pytest.raises(InvalidInputError) as caught:
            order_start(items, "web", wrong)
        assert sentence_for(host.side.record) in caught.value.hint
    host.look()
    assert host.state == HELD
    folder, _record = order_start(items, "web", "I checked that web does not run at the other site")
    with pytest.raises(TimeoutExceededError):
        wait_for_start(folder, 0)
    host.look()
    wait_for_start(folder, 0)
    assert host.state == RUNS
    with pytest.raises(ConflictError):
        order_start(items, ITEM, sentence_for(host.side.record))


@pytest.mark.parametrize("text", ['{"epoch": 7}', "torn", "[]"])
def test_an_operators_order_of_another_epoch_starts_nothing(host: Host, text: str) -> None:
    host.boot()
    order = host.side.items.folder(ITEM) / START_ORDER
    order.write_text(text)
    host.look()
    assert host.state == HELD
    assert not order.exists()


def test_an_operator_is_told_when_the_other_side_turned_out_to_run_it(host: Host) -> None:
    host.boot()
    folder, _record = order_start(host.side.folders.items, "web", sentence_for(host.side.record))
    host.side.done("source.demote", 2, new_epoch=2)
    with pytest.raises(ConflictError):
        wait_for_start(folder, 0)
    host.look()
    assert host.side.power is PowerState.OFF


# -- superseded without an order -----------------------------------------------------------------------------


def test_a_source_that_was_refused_by_the_running_side_stops_its_machine(host: Host) -> None:
    host.gate.superseded(ITEM, Epoch(5))
    host.side.fabric.fail("power_off", UnavailableError("the hypervisor is away"))
    host.look()
    host.look()
    record = host.side.record
    assert (record.role, record.epoch, host.side.power, host.side.locked) == (
        Role.STANDBY,
        5,
        PowerState.OFF,
        True,
    )


@pytest.mark.parametrize("paused", [False, True])
def test_a_source_learns_from_its_target_that_it_was_superseded_also_between_its_cycles(
    host: Host, paused: bool
) -> None:
    """After the link had been down for long its next try was half an hour away, and it ran beside the other side."""
    if paused:
        host.side.done("source.pause")
    for answer in (1, 3, SILENT, active(1), StaleEpochError("standby", role="standby", current=9)):
        host.others.at_target = answer
        host.gate.probe()
        host.look()
        assert (host.side.record.role, host.side.power) == (Role.SOURCE, PowerState.RUNNING)
    host.others.at_target = active(2)
    host.gate.probe()
    host.look()
    assert (host.side.record.role, host.side.record.epoch) == (Role.STANDBY, 2)
    assert (host.side.power, host.side.locked) == (PowerState.OFF, True)


def test_a_source_that_was_released_meanwhile_is_not_stopped(host: Host) -> None:
    host.gate.superseded(ITEM, Epoch(2))
    host.side.done("source.release", 3, epoch=3)
    host.look()
    assert (host.side.record.role, host.side.power) == (Role.SOURCE, PowerState.RUNNING)


def test_what_a_crash_left_of_stepping_down_is_finished_without_an_order(host: Host) -> None:
    side = host.side
    for at in itertools.count():
        ended = False
        with killed_at(side, at), suppress(Killed):
            side.act("source.demote", 2 * at + 2, new_epoch=2 * at + 2)
            ended = True
        host.restart_daemon()
        host.look()
        if side.record.role is Role.STANDBY:
            assert (side.power, side.locked) == (PowerState.OFF, True), f"cut before step {at}"
        else:
            side.done("source.demote", 2 * at + 2, new_epoch=2 * at + 2)
        side.done("source.release", 2 * at + 3, epoch=2 * at + 3)
        if ended:
            break
    assert at >= 3


def test_the_gate_is_cut_at_any_step_and_never_runs_what_is_not_confirmed(tmp_path: Path) -> None:
    for at in itertools.count():
        host = Host(tmp_path / str(at))
        host.boot(starts_machines=True)
        ended = False
        with killed_at(host.side, at), suppress(Killed):
            host.look()
            ended = True
        host.restart_daemon()
        host.look()
        assert host.state == (PowerState.PAUSED, True, False), f"cut before step {at}"
        host.others.at_target = 1
        with killed_at(host.side, at), suppress(Killed):
            host.look()
        host.restart_daemon()
        host.look()
        assert (host.side.power, host.held) == (PowerState.RUNNING, None), f"cut before step {at}"
        host.side.close()
        if ended:
            break
    assert at >= 2


def test_the_marker_is_of_one_boot(host: Host) -> None:
    """A run folder that outlives its host's boot (it is on no tmpfs) must not make one look like a restart."""
    assert (host.side.folders.run / "booted").read_text() == "boot-0"
    host.boot()
    assert host.held is not None
    record = json.loads((host.side.items.folder(ITEM) / "record.json").read_text())
    assert record["held"]["reason"]
