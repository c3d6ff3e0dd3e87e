"""Commands: each runs once to its end, again after a crash, in order for one item, and never from an older epoch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import ConflictError, InvalidInputError, NoSpaceError
from secondsite.model.ids import CommandId, Epoch, ItemId
from secondsite.model.policy import Policy
from secondsite.node.executor import Command, Executor, Handler, Progress
from secondsite.node.records import ItemRecord, ItemStore, Role

ITEM = ItemId("0b6c7e9a-0000-4000-8000-00000000dddd")
OTHER = ItemId("0b6c7e9a-0000-4000-8000-00000000eeee")


@dataclass
class Answers:
    """What the service was told."""

    results: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    told: list[Mapping[str, Any]] = field(default_factory=list)
    cancel: bool = False
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def result(self, command: CommandId, outcome: Mapping[str, Any]) -> None:
        with self.arrived:
            self.results.append((command, outcome))
            self.arrived.notify_all()

    def progress(self, command: CommandId, fields: Mapping[str, Any]) -> bool:
        self.told.append(fields)
        return self.cancel

    def wait(self, count: int) -> list[tuple[str, Mapping[str, Any]]]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.results) >= count, 10)
            return list(self.results)


class Site:
    """An executor over a folder, with handlers that the test gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items = ItemStore(folder / "items")
        self.answers = Answers()
        self.handlers: dict[str, Handler] = {}
        self.executor = Executor(folder / "commands", self.handlers, self.items, self.answers)

    def on(self, kind: str, handler: Callable[[Command], Mapping[str, Any]]) -> None:
        self.handlers[kind] = lambda command, progress: handler(command)

    def submit(
        self, identifier: str, kind: str, item: ItemId | None = None, epoch: int = 1, **args: Any
    ) -> None:
        self.executor.submit(Command(CommandId(identifier), kind, item, Epoch(epoch), args))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.executor.close()


def record(epoch: int) -> ItemRecord:
    return ItemRecord(
        item=ITEM,
        name="web",
        epoch=Epoch(epoch),
        role=Role.TARGET,
        digest_key=bytes(32).hex(),
        policy=Policy(),
        disks=(),
    )


def test_a_command_that_comes_again_is_answered_from_its_result(site: Site) -> None:
    runs: list[str] = []
    site.on("count", lambda command: {"run": (runs.append(command.id), len(runs))[1]})
    site.submit("job:1:count", "count")
    site.answers.wait(1)
    site.submit("job:1:count", "count")
    assert [outcome for _, outcome in site.answers.wait(2)] == [{"result": {"run": 1}}] * 2
    assert len(runs) == 1


def test_a_command_that_comes_again_while_it_runs_is_not_begun_again(site: Site) -> None:
    go, runs = threading.Event(), []

    def slow(command: Command) -> Mapping[str, Any]:
        runs.append(command.id)
        assert go.wait(10)
        return {}

    site.on("slow", slow)
    for _ in range(3):
        site.submit("a", "slow")
    assert site.executor.running() == ["a"]
    go.set()
    site.answers.wait(1)
    assert runs == ["a"]


def test_a_command_that_comes_again_just_as_it_ends_runs_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked up as unknown, ended, and was then found not to be running: so it ran twice."""
    runs: list[str] = []
    site.on("count", lambda command: {"run": (runs.append(command.id), len(runs))[1]})
    kept = Executor._kept

    def late(executor: Executor, command: CommandId) -> dict[str, Any] | None:
        found = kept(executor, command)
        site.answers.arrived.acquire()
        site.answers.arrived.wait_for(lambda: len(site.answers.results) >= 1, 0.2 if runs else 0)
        site.answers.arrived.release()
        return found

    monkeypatch.setattr(Executor, "_kept", late)
    site.submit("a", "count")
    site.submit("a", "count")
    site.executor.close()
    assert runs == ["a"]


def test_a_command_that_a_crash_cut_runs_again_and_an_ended_one_does_not(tmp_path: Path) -> None:
    first = Site(tmp_path)
    first.on("done", lambda _: {"value": 1})
    first.submit("done-1", "done")
    first.answers.wait(1)
    first.executor.close()
    (tmp_path / "commands" / "cut-1.json").write_text(
        '{"result": {"val'
    )  # no rename: cannot be, but is survived
    second = Site(tmp_path)
    second.on("done", lambda _: pytest.fail("it ran again"))
    second.on("cut", lambda _: {"value": 2})
    second.submit("done-1", "done")
    second.submit("cut-1", "cut")
    assert dict(second.answers.wait(2)) == {
        "done-1": {"result": {"value": 1}},
        "cut-1": {"result": {"value": 2}},
    }
    second.executor.close()


def test_ids_that_look_alike_have_results_of_their_own(site: Site) -> None:
    site.on("name", lambda command: {"id": command.id})
    for identifier in ("job:1", "job_1", "job.1", ".."):
        site.submit(identifier, "name")
        site.submit(identifier, "name")
    for identifier, outcome in site.answers.wait(4):
        assert outcome == {"result": {"id": identifier}}


def test_an_older_epoch_is_refused_and_the_same_one_is_not(site: Site) -> None:
    site.items.put(record(3))
    site.on("act", lambda _: {})
    site.submit("old", "act", ITEM, 2)
    site.submit("now", "act", ITEM, 3)
    site.submit("again", "act", ITEM, 2, new_epoch=3)  # the repetition of what raised it
    found = dict(site.answers.wait(3))
    assert found["old"]["error"]["code"] == "stale_epoch"
    assert found["now"] == found["again"] == {"result": {}}


def test_commands_of_one_item_run_one_after_the_other_and_of_two_beside_each_other(site: Site) -> None:
    meeting = threading.Barrier(2)
    inside: list[ItemId] = []

    def meet(command: Command) -> Mapping[str, Any]:
        assert command.item is not None
        assert command.item not in inside
        inside.append(command.item)
        meeting.wait(10)
        inside.remove(command.item)
        return {}

    site.on("meet", meet)
    for number in range(2):
        for item in (ITEM, OTHER):
            site.submit(f"{item}-{number}", "meet", item)
    assert all(outcome == {"result": {}} for _, outcome in site.answers.wait(4))


def test_failures_are_results_too(site: Site) -> None:
    def refuse(_: Command) -> Mapping[str, Any]:
        raise ConflictError("no", hint="ask later")

    def break_down(_: Command) -> Mapping[str, Any]:
        raise ZeroDivisionError

    site.on("refuse", refuse)
    site.on("break", break_down)
    for kind in ("refuse", "break", "unheard-of"):
        site.submit(kind, kind)
    found = dict(site.answers.wait(3))
    assert found["refuse"]["error"]["hint"] == "ask later"
    assert "ZeroDivisionError" in found["break"]["error"]["message"]
    assert found["unheard-of"]["error"]["hint"] == "upgrade the node"
    kept = json.loads((site.folder / "commands" / "refuse.json").read_text())
    assert kept["error"]["code"] == "conflict"


def test_a_command_that_is_cancelled_ends_at_its_next_word(site: Site) -> None:
    def long(command: Command, progress: Progress) -> Mapping[str, Any]:
        progress(0.5, "half")
        return {}

    site.handlers["long"] = long
    site.answers.cancel = True
    site.submit("a", "long")
    assert dict(site.answers.wait(1))["a"]["error"]["code"] == "cancelled"
    assert site.answers.told[0]["fraction"] == 0.5


def test_a_result_that_cannot_be_kept_is_told_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise NoSpaceError("the disk is full")

    monkeypatch.setattr("secondsite.durable.write_atomic", full)
    runs: list[int] = []
    site.on("act", lambda _: runs.append(1) or {"value": len(runs)})
    site.submit("a", "act")
    assert site.answers.wait(1) == [("a", {"result": {"value": 1}})]
    site.submit("a", "act")  # answered from memory: it does not run again before a restart
    assert site.answers.wait(2)[1] == ("a", {"result": {"value": 1}})
    assert len(runs) == 1


@pytest.mark.parametrize(
    "fields",
    [
        None,
        {},
        {"id": "", "kind": "x"},
        {"id": "../etc", "kind": "x"},
        {"id": "a" * 201, "kind": "x"},
        {"id": "a", "kind": 1},
        {"id": "a", "kind": "x", "epoch": "1"},
        {"id": "a", "kind": "x", "item": "../.."},
    ],
)
def test_what_is_no_command_is_refused(fields: object) -> None:
    with pytest.raises(InvalidInputError):
        Command.parse(fields)


def test_a_command_is_read_as_the_service_writes_it() -> None:
    fields = {"id": "j:0:x", "kind": "x", "item": ITEM, "epoch": 2, "args": {"a": 1}}
    assert Command.parse(fields) == Command(CommandId("j:0:x"), "x", ITEM, Epoch(2), {"a": 1})
