"""The channel to the service: whatever goes wrong with one call, the node goes on hearing and telling."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from secondsite.errors import RemoteError, UnavailableError
from secondsite.model.ids import CommandId
from secondsite.node import channel as channels
from secondsite.node.channel import Channel
from secondsite.node.executor import Command
from support.reported_points import Site

COMMAND = {"id": "a", "kind": "act", "item": None, "epoch": 0, "args": {}}


class Service:
    """Answers what the test gave; a call without an answer waits until the end."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.calls: queue.Queue[tuple[str, Mapping[str, Any]]] = queue.Queue()
        self.ended = threading.Event()

    def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        self.calls.put((path, body))
        waiting = self.answers.get(path)
        if path.endswith("poll") and not waiting:
            self.ended.wait(10)
        answer = waiting.pop(0) if waiting else {}
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    def close(self) -> None:
        self.ended.set()

    def next(self, path: str) -> Mapping[str, Any]:
        """Return the body of the next call of this path."""
        while True:
            called, body = self.calls.get(timeout=10)
            if called == path:
                return body


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(channels, "RETRY_MAX_S", 0.01)
    return Service()


@pytest.fixture
def start(service: Service) -> Iterator[Callable[..., Channel]]:
    started: list[Channel] = []

    def begin(
        submit: Callable[[Command], None] = lambda command: None,
        report: Callable[[bool], Mapping[str, Any]] = lambda inventory: {},
        lost: Callable[[], None] = lambda: None,
    ) -> Channel:
        channel = Channel(service, report, lost)  # type: ignore[arg-type]
        started.append(channel)
        channel.start(submit, lambda: [CommandId("running")])
        return channel

    yield begin
    for channel in started:
        channel.close()


def test_commands_that_arrive_are_submitted_and_strange_ones_are_not(
    service: Service, start: Callable[..., Channel]
) -> None:
    taken: queue.Queue[Command] = queue.Queue()
    service.answers["/node/v1/poll"] = [{"commands": [{"id": 1}, "x", COMMAND]}]
    start(taken.put)
    assert taken.get(timeout=10).id == "a"
    assert service.next("/node/v1/poll")["running"] == ["running"]


def test_polling_goes_on_after_any_failure(service: Service, start: Callable[..., Channel]) -> None:
    taken: queue.Queue[Command] = queue.Queue()
    service.answers["/node/v1/poll"] = [UnavailableError("away"), OSError("a bug"), {"commands": [COMMAND]}]
    start(taken.put)
    assert taken.get(timeout=10).id == "a"


def test_a_result_is_told_until_the_service_has_it(service: Service, start: Callable[..., Channel]) -> None:
    service.answers["/node/v1/result"] = [UnavailableError("away"), OSError("a bug"), {}]
    channel = start()
    channel.result(CommandId("a"), {"result": {"value": 1}})
    for _ in range(3):
        assert service.next("/node/v1/result") == {"command": "a", "result": {"value": 1}}
    channel.result(CommandId("b"), {"result": {}})
    assert service.next("/node/v1/result")["command"] == "b"


def test_a_report_that_breaks_does_not_keep_a_result_back_for_good(
    service: Service, start: Callable[..., Channel]
) -> None:
    failures = iter([ZeroDivisionError("a bug")] * 3)

    def report(inventory: bool) -> Mapping[str, Any]:
        if (error := next(failures, None)) is not None:
            raise error
        return {}

    start(report=report).result(CommandId("a"), {"result": {}})
    assert service.next("/node/v1/result")["command"] == "a"


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("a bug"), OSError(5, "Input/output error"), UnavailableError("a lock")],
    ids=repr,
)
def test_a_report_that_can_never_be_made_keeps_no_result_back(
    service: Service, start: Callable[..., Channel], error: Exception
) -> None:
    def report(inventory: bool) -> Mapping[str, Any]:
        raise error

    channel = start(report=report)
    for command in ("a", "b"):
        channel.result(CommandId(command), {"result": {}})
    assert [service.next("/node/v1/result")["command"] for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize("code", ["too_large", "invalid_input"])
def test_a_report_that_the_service_never_takes_keeps_no_result_back(
    service: Service, start: Callable[..., Channel], code: str
) -> None:
    service.answers["/node/v1/report"] = [
        RemoteError({"code": code, "message": "no", "retry": "never"})
    ] * 1000
    start().result(CommandId("a"), {"result": {}})
    assert service.next("/node/v1/result")["command"] == "a"


def test_a_result_waits_for_its_report_while_the_service_does_not_answer(
    service: Service, start: Callable[..., Channel]
) -> None:
    service.answers["/node/v1/report"] = [UnavailableError("away")] * 3
    start().result(CommandId("a"), {"result": {}})
    for _ in range(4):  # the fourth arrives
        assert service.calls.get(timeout=10)[0] in {"/node/v1/report", "/node/v1/poll"}
    assert service.next("/node/v1/result")["command"] == "a"


def test_a_service_that_fails_at_every_report_gets_results_all_the_same(
    service: Service, start: Callable[..., Channel]
) -> None:
    broken = RemoteError({"code": "internal", "message": "internal error"})
    service.answers["/node/v1/report"] = [broken] * 1000
    start().result(CommandId("a"), {"result": {}})
    assert service.next("/node/v1/result") == {"command": "a", "result": {}}


def test_a_result_that_the_service_does_not_want_is_dropped(
    service: Service, start: Callable[..., Channel]
) -> None:
    service.answers["/node/v1/result"] = [RemoteError({"code": "not_found", "message": "no such command"})]
    channel = start()
    channel.result(CommandId("a"), {"result": {}})
    channel.result(CommandId("b"), {"result": {}})
    assert service.next("/node/v1/result")["command"] == "a"
    assert service.next("/node/v1/result")["command"] == "b"


def test_a_lost_report_is_made_whole_again(service: Service, start: Callable[..., Channel]) -> None:
    lost = threading.Event()
    service.answers["/node/v1/report"] = [UnavailableError("away")]
    start(lost=lost.set)
    assert lost.wait(10)


def test_what_a_report_that_could_not_be_made_would_have_told_is_in_the_next(
    service: Service, start: Callable[..., Channel]
) -> None:
    site = Site({"web": {1: "a"}, "mail": {1: "x"}})
    site.told()
    site.told()
    site.lists["web"] = {2: "b"}
    site.events.tell(None, "code", "message")
    failures = iter([ZeroDivisionError("a bug"), None])

    def report(inventory: bool) -> Mapping[str, Any]:
        site.broken = {} if (error := next(failures, None)) is None else {"mail": error}
        return site.reporter.make(with_inventory=False)

    start(report=report, lost=site.reporter.forget_sent)
    body = service.next("/node/v1/report")
    entry = body["points"]["web"]
    assert ([point["sequence"] for point in entry["points"]], entry["gone"]) == ([2], [1])
    assert [event["code"] for event in body["events"]] == ["code"]
