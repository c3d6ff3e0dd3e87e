"""A freeze is bounded and always thawed; whatever fails costs the consistency, never the point."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secondsite.capture.fake_agent import FakeAgent
from secondsite.capture.guard import ThawGuard
from secondsite.capture.quiesce import POST_THAW, PRE_FREEZE, Quiescer
from secondsite.errors import NoSpaceError, TimeoutExceededError, UnavailableError
from support.patience import wait_until


def quiescer(agent: FakeAgent, folder: Path, limit_s: float = 60.0) -> Quiescer:
    return Quiescer(agent, folder / "frozen", limit_s=limit_s, pause=lambda _: None)


def test_what_begins_within_finds_the_guest_frozen_and_after_it_is_thawed(tmp_path: Path) -> None:
    agent = FakeAgent()
    result, problem = quiescer(agent, tmp_path).around(lambda: agent.frozen)
    assert (result, problem) == (True, None)
    assert not agent.frozen
    assert list(tmp_path.iterdir()) == []


def test_the_guests_hooks_run_around_the_freeze(tmp_path: Path) -> None:
    agent = FakeAgent(hooks={PRE_FREEZE: 0, POST_THAW: 3})
    _, problem = quiescer(agent, tmp_path).around(lambda: agent.calls.append("begun"))
    assert problem is None  # what the last hook says cannot make the point wrong
    assert agent.calls == [PRE_FREEZE, "freeze", "begun", "thaw", POST_THAW]


@pytest.mark.parametrize("slow", [False, True])
def test_a_hook_that_fails_or_does_not_end_leaves_the_guest_unfrozen(tmp_path: Path, slow: bool) -> None:
    agent = FakeAgent(hooks={PRE_FREEZE: 1, POST_THAW: 0}, slow={PRE_FREEZE} if slow else set())
    result, problem = quiescer(agent, tmp_path).around(lambda: "begun")
    assert result == "begun"
    assert problem is not None
    assert PRE_FREEZE in problem.message
    assert agent.calls == [PRE_FREEZE, POST_THAW]


def test_without_an_agent_the_snapshot_begins_all_the_same(tmp_path: Path) -> None:
    agent = FakeAgent(present=False)
    result, problem = quiescer(agent, tmp_path).around(lambda: "begun")
    assert result == "begun"
    assert problem is not None
    assert (problem.code, agent.calls) == ("unavailable", [])
    agent.present = True
    assert quiescer(agent, tmp_path).around(lambda: "begun") == ("begun", None)


def test_a_freeze_that_fails_is_thawed_before_the_snapshot_begins(tmp_path: Path) -> None:
    agent = FakeAgent(fail_freeze=TimeoutExceededError("the agent took too long"))
    result, problem = quiescer(agent, tmp_path).around(lambda: agent.frozen)
    assert result is False
    assert problem is agent.fail_freeze
    assert list(tmp_path.iterdir()) == []


def test_a_guest_without_file_systems_is_not_called_consistent(tmp_path: Path) -> None:
    _, problem = quiescer(FakeAgent(file_systems=0), tmp_path).around(lambda: None)
    assert problem is not None


def test_a_snapshot_that_fails_is_told_after_the_thaw(tmp_path: Path) -> None:
    agent = FakeAgent()

    def begin() -> None:
        raise NoSpaceError("no scratch space")

    with pytest.raises(NoSpaceError):
        quiescer(agent, tmp_path).around(begin)
    assert not agent.frozen
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_that_takes_too_long_is_thawed_meanwhile_and_not_called_consistent(tmp_path: Path) -> None:
    agent = FakeAgent()

    def begin() -> bool:
        wait_until(lambda: not agent.frozen)
        return True

    begun, problem = quiescer(agent, tmp_path, limit_s=0.05).around(begin)
    assert begun
    assert problem is not None
    assert problem.code == "timeout"
    assert agent.calls.count("thaw") == 1


def test_a_guest_that_somebody_else_thawed_is_not_called_consistent(tmp_path: Path) -> None:
    agent = FakeAgent()
    _, problem = quiescer(agent, tmp_path).around(agent.thaw)
    assert problem is not None


def test_a_thaw_that_is_not_answered_is_tried_until_it_is(tmp_path: Path) -> None:
    agent = FakeAgent(fail_thaws=5)
    _, problem = quiescer(agent, tmp_path).around(lambda: None)
    assert problem is not None
    wait_until(lambda: not (tmp_path / "frozen").exists())
    assert not agent.frozen
    assert agent.fail_thaws == 0


def test_what_a_dead_process_left_frozen_is_thawed_by_the_next(tmp_path: Path) -> None:
    agent = FakeAgent()
    assert not quiescer(agent, tmp_path).thaw_leftover()
    assert agent.calls == []  # nothing is asked of a guest that nobody froze
    (tmp_path / "frozen").touch()  # written before the order to freeze, and the process is gone
    agent.frozen = True
    agent.fail_thaws = 1
    with pytest.raises(UnavailableError):
        quiescer(agent, tmp_path).thaw_leftover()
    assert quiescer(agent, tmp_path).thaw_leftover()
    assert not agent.frozen
    assert not quiescer(agent, tmp_path).thaw_leftover()


def test_the_marker_is_there_before_the_guest_is_frozen(tmp_path: Path) -> None:
    marked: list[bool] = []

    class Watched(FakeAgent):
        def freeze(self) -> int:
            marked.append((tmp_path / "frozen").exists())
            return super().freeze()

    quiescer(Watched(), tmp_path).around(lambda: None)
    assert marked == [True]


class FakeGuard:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, marker: Path, limit_s: float) -> None:
        assert marker.exists()
        self.calls.append(f"begin {limit_s:g}")

    def end(self) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("fail_thaws", [0, 3])
def test_a_guard_watches_from_before_the_freeze_until_the_guest_is_thawed(
    tmp_path: Path, fail_thaws: int
) -> None:
    guard, agent = FakeGuard(), FakeAgent(fail_thaws=fail_thaws)
    seen: list[list[str]] = []
    quiescer = Quiescer(agent, tmp_path / "frozen", limit_s=60, guard=guard, pause=lambda _: None)
    quiescer.around(lambda: seen.append(list(guard.calls)))
    assert seen == [["begin 60"]]
    wait_until(lambda: guard.calls == ["begin 60", "end"])


def test_a_freeze_that_ends_leaves_no_guard_behind(tmp_path: Path) -> None:
    guard = ThawGuard("test:///default", "test")
    marker = tmp_path / "frozen"
    marker.touch()
    guard.begin(marker, 60)
    process = guard._process
    assert process is not None
    assert process.poll() is None
    guard.end()
    guard.end()
    assert process.poll() is not None

    def gone() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(gone)  # the sleep that it waited for, too
