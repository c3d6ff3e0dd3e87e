"""Orders of one item are carried out as they came, each has one outcome, and what a stop cut has none."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from secondsite import durable
from secondsite.errors import ConflictError, NoSpaceError, SecondSiteError
from secondsite.fabric.port import CancelledError
from secondsite.model.ids import CommandId, Epoch, ItemId
from secondsite.node.executor import Command, Executor, Handler
from secondsite.node.records import ItemStore, Role
from secondsite.ship.delivery import StoppedError
from support.journals import ITEM
from support.power import unsynced
from support.role_world import WAIT_S, Answers, TargetSide

OTHER = ItemId("0b6c7e9a-0000-4000-8000-00000000eeee")


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with unsynced():
        yield


class Node:
    """An executor in a folder; a new one over the same folder is the node after a restart."""

    def __init__(self, folder: Path) -> None:
        self.items = ItemStore(folder / "items")
        self.answers = Answers()
        self.handlers: dict[str, Handler] = {"note": self._note, "gate": self._wait}
        self.executor = Executor(folder / "commands", self.handlers, self.items, self.answers)
        self.noted: list[str] = []
        self.waiting, self.gate = threading.Event(), threading.Event()

    def submit(self, identifier: str, kind: str = "note", item: ItemId = ITEM) -> str:
        self.executor.submit(Command(CommandId(identifier), kind, item, Epoch(1)))
        return identifier

    def _note(self, command: Command, _progress: object) -> Mapping[str, Any]:
        self.noted.append(command.id)
        return {}

    def _wait(self, command: Command, _progress: object) -> Mapping[str, Any]:
        self.waiting.set()
        assert self.gate.wait(WAIT_S)
        return {}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.gate.set()
    node.executor.close()


class LastComesFirst:
    """A lock that is as unfair as a lock may be: of those who wait, the last one gets it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = False
        self._waiting: list[object] = []

    def __enter__(self) -> None:
        me = object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: not self._held and self._waiting[-1] is me)
            self._waiting.remove(me)
            self._held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._held = False
            self._changed.notify_all()


def test_orders_of_one_item_are_carried_out_in_their_order(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abandon overtook its failover at the item's lock, which is not fair: the failover then stood."""
    lock = LastComesFirst()
    monkeypatch.setattr(node.items, "lock", lambda item: lock)
    node.submit("first", "gate")
    assert node.waiting.wait(WAIT_S)
    orders = [node.submit(f"order-{number}") for number in range(12)]
    node.gate.set()
    for order in orders:
        node.answers.wait(order)
    assert node.noted == orders


def test_many_orders_of_one_item_hold_up_no_other_item(node: Node) -> None:
    """Each waiting order took a worker, so an item whose failover hung kept those of the others from running."""
    node.submit("first", "gate")
    assert node.waiting.wait(WAIT_S)
    for number in range(40):
        node.submit(f"order-{number}")
    node.submit("other", item=OTHER)
    told = threading.Event()
    threading.Thread(target=lambda: (node.answers.wait("other"), told.set()), daemon=True).start()
    assert told.wait(3)
    assert node.noted == ["other"]


def test_an_order_whose_outcome_cannot_be_kept_runs_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise NoSpaceError("the disk is full")

    monkeypatch.setattr(durable, "write_atomic", full)
    node.submit("a")
    first = node.answers.wait("a")
    node.submit("a")
    assert node.answers.wait("a", 2) == first
    assert node.noted == ["a"]


@pytest.mark.parametrize(
    "error", [CancelledError("cancelled"), StoppedError("stopped")], ids=lambda e: e.code
)
def test_an_order_that_the_nodes_stop_cut_has_no_outcome_and_runs_again(
    node: Node, tmp_path: Path, error: SecondSiteError
) -> None:
    """The stop of the node was told as the failure of the order, so a workflow rolled back for a restart."""

    def cut(_command: Command, _progress: object) -> Mapping[str, Any]:
        node.waiting.set()
        assert node.gate.wait(WAIT_S)
        raise error

    node.handlers["long"] = cut
    node.submit("a", "long")
    assert node.waiting.wait(WAIT_S)
    node.executor.stopping()
    node.gate.set()
    node.executor.close()
    assert node.answers.order == []
    after = Node(tmp_path)
    after.handlers["long"] = after.handlers["note"]
    after.submit("a", "long")
    assert after.answers.wait("a") == {"result": {}}
    assert after.noted == ["a"]
    after.executor.close()


def test_an_order_that_ends_while_the_node_stops_keeps_its_outcome(node: Node, tmp_path: Path) -> None:
    def refuse(_command: Command, _progress: object) -> Mapping[str, Any]:
        node.waiting.set()
        assert node.gate.wait(WAIT_S)
        raise ConflictError("no")

    node.handlers["refuse"] = refuse
    node.submit("a", "refuse")
    assert node.waiting.wait(WAIT_S)
    node.executor.stopping()
    node.gate.set()
    node.executor.close()
    after = Node(tmp_path)
    after.submit("a", "refuse")
    assert after.answers.wait("a")["error"]["message"] == "no"
    after.executor.close()


def test_orders_that_wait_when_the_node_stops_are_begun_after_its_restart(node: Node, tmp_path: Path) -> None:
    node.submit("first", "gate")
    assert node.waiting.wait(WAIT_S)
    node.submit("second")
    closing = threading.Thread(target=node.executor.close)
    closing.start()
    node.answers.cancel = True
    while node.executor._waiting.get(ITEM):
        assert closing.is_alive()
    node.gate.set()
    closing.join()
    assert (node.noted, node.answers.order) == ([], ["first"])
    after = Node(tmp_path)
    after.submit("second")
    after.answers.wait("second")
    assert after.noted == ["second"]
    after.executor.close()


# -- a commit that is cut ------------------------------------------------------------------------------------


@pytest.fixture
def side(tmp_path: Path) -> Iterator[TargetSide]:
    side = TargetSide(tmp_path / "target")
    yield side
    side.close()


def _stop(side: TargetSide) -> None:
    """As the daemon does it: the executor knows first, then settling ends."""
    side.executor.stopping()
    side.settler.close()
    side.executor.close()


def test_a_commit_that_the_nodes_stop_cut_is_carried_out_after_its_restart(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulling = threading.Event()
    never = threading.Event()

    def pull(vm: str, *, progress: object, cancelled: Any) -> None:
        pulling.set()
        while not cancelled():
            never.wait(0.01)
        raise CancelledError("cancelled")

    real = side.fabric.make_standalone
    monkeypatch.setattr(side.fabric, "make_standalone", pull)
    side.fail_over(2)
    order = side.command("target.commit", 2)
    side.executor.submit(order)
    assert pulling.wait(WAIT_S)
    _stop(side)
    assert side.answers.order == []
    monkeypatch.setattr(side.fabric, "make_standalone", real)
    side.reopen()
    assert side.submit(order) == {"result": {}}
    assert not side.journals.exists(ITEM)
    assert side.record.role is Role.ACTIVE


@pytest.mark.parametrize("settled_before", [False, True])
def test_a_commit_that_begins_while_the_node_stops_ends_without_an_outcome(
    side: TargetSide, monkeypatch: pytest.MonkeyPatch, settled_before: bool
) -> None:
    """It waited for a thread that nobody starts any more, or told the stop as a conflict."""
    side.fail_over(2)
    if settled_before:

        def full(*_args: Any, **_options: Any) -> None:
            raise NoSpaceError("the disk is full")

        # Each time: one that began by itself at the failover may be the one that fails.
        with monkeypatch.context() as patch:
            patch.setattr(side.fabric, "make_standalone", full)
            assert side.refused("target.commit", 2) == NoSpaceError.code
    told = list(side.answers.order)
    side.executor.stopping()
    side.settler.close()
    begun, ended = threading.Event(), threading.Event()
    wait = side.settler.wait
    monkeypatch.setattr(side.settler, "wait", lambda *args: (begun.set(), wait(*args)))
    order = side.command("target.commit", 2)
    side.executor.submit(order)
    assert begun.wait(WAIT_S)
    threading.Thread(target=lambda: (side.executor.close(), ended.set()), daemon=True).start()
    stopped = ended.wait(3)
    if not stopped:
        monkeypatch.setattr(side.items, "get", None)  # let the test fail, not hang
    assert stopped
    assert side.answers.order == told
    side.reopen()
    assert side.submit(order) == {"result": {}}
