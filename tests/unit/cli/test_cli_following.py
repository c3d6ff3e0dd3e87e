"""Following a job: progress, a service that restarts meanwhile, every end a job can have."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

from secondsite.api_client import ApiClient, Connection
from secondsite.cli import following
from secondsite.cli.following import describe
from support.cli_world import URL, call

KNOWN = {"SECONDSITE_URL": URL, "SECONDSITE_TOKEN": "t"}
JOB = "0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f"
Answer = dict[str, Any] | int | Exception


def job(state: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a job as the service gives it."""
    return {
        "id": JOB,
        "operation": "enable",
        "item": "web-1",
        "state": state,
        "seconds": 1.25,
        "result": None,
        "error": None,
        "tasks": list(tasks),
        **more,
    }


def task(ordinal: int, name: str, state: str, **more: Any) -> dict[str, Any]:
    """Return a task of a job."""
    return {"ordinal": ordinal, "name": name, "state": state, "progress": None, "error": None, **more}


class Recorded(httpx.BaseTransport):
    """Gives one answer after the other: a job, a bare status, or no answer at all."""

    def __init__(self, *answers: Answer) -> None:
        self._answers: Iterator[Answer] = iter(answers)
        self.asked = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer, request=request)
        return httpx.Response(200, json=answer, request=request)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a person's terminal is sent on standard error."""
    written = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(
        following, "err", Console(file=written, force_terminal=True, width=120, highlight=False)
    )
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    return written


def test_a_job_is_asked_for_until_it_ends() -> None:
    service = Recorded(job("NotStarted"), job("InProgress"), job("InProgress"), job("Succeeded"))
    said = call(service, "job", "wait", JOB, "--json", env=KNOWN)
    assert (said.code, said.json["state"], service.asked) == (0, "Succeeded", 4)


def test_a_service_that_restarts_meanwhile_does_not_end_the_waiting() -> None:
    away = [httpx.ConnectError("refused"), 503, httpx.ReadTimeout("slow"), 502]
    service = Recorded(job("InProgress"), job("InProgress"), *away, job("Succeeded"))
    said = call(service, "job", "wait", JOB, env=KNOWN)
    assert (said.code, service.asked) == (0, 7)
    assert said.out.startswith("Succeeded: enable web-1 in 1.2 s")


def test_a_service_that_stays_away_is_exit_code_6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "AWAY_S", -1.0)
    service = Recorded(job("InProgress"), httpx.ConnectError("refused"))
    said = call(service, "job", "wait", JOB, env=KNOWN)
    assert said.code == 6
    assert "does not answer" in said.err


def test_another_error_while_following_ends_it_at_once() -> None:
    fields = {"code": "unauthenticated", "message": "revoked", "hint": ""}
    answers = iter([httpx.Response(200, json=job("InProgress")), httpx.Response(401, json={"error": fields})])
    said = call(httpx.MockTransport(lambda _request: next(answers)), "job", "wait", JOB, env=KNOWN)
    assert said.code == 5


@pytest.mark.parametrize(("state", "code"), [("Succeeded", 0), ("Failed", 1), ("Cancelled", 1)])
def test_how_the_job_ends_decides_the_exit_code(state: str, code: int) -> None:
    for mode in ([], ["--json"]):
        assert (
            call(Recorded(job("InProgress"), job(state)), "job", "wait", JOB, *mode, env=KNOWN).code == code
        )


def test_a_failed_job_shows_its_error_and_its_hint() -> None:
    error = {"code": "no_space", "message": "the disk [vda] is full", "hint": "add space"}
    said = call(
        Recorded(job("Failed", error=error), job("Failed", error=error)), "job", "wait", JOB, env=KNOWN
    )
    assert said.err == "error [no_space]: the disk [vda] is full\n  hint: add space\n"


def test_a_job_is_not_followed_after_a_failure_to_begin() -> None:
    fields = {"code": "operation_refused", "message": "it runs", "hint": "wait"}
    requests: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request.method)
        return httpx.Response(409, json={"error": fields})

    assert call(httpx.MockTransport(answer), "item", "commit", "web-1", env=KNOWN).code == 3
    assert requests == ["POST"]


def test_progress_goes_to_a_terminal_with_bytes_rate_and_time_left(screen: io.StringIO) -> None:
    half = {"bytes": 1 << 20, "total_bytes": 2 << 20, "rate": 1 << 19, "eta_s": 2.0, "text": "vda"}
    waiting = task(3, "later", "NotStarted")
    begun = task(1, "initial replication", "InProgress", progress=half)
    failed = task(2, "start", "Failed", error={"message": "no [space]"})
    done = task(1, "initial replication", "Succeeded")
    service = Recorded(
        job("InProgress"), job("InProgress", begun, waiting), job("Failed", done, failed, waiting)
    )
    api = ApiClient(Connection(URL, "t", None), transport=service)
    assert following.follow(api, JOB)["state"] == "Failed"
    api.close()
    seen = " ".join(screen.getvalue().split())
    assert "1.0 MiB of 2.0 MiB, 512.0 KiB/s, 2 s left, vda" in seen
    assert "initial replication" in seen
    assert "no [space]" in seen
    assert "later" not in seen


def test_progress_is_not_printed_into_a_pipe() -> None:
    begun = task(1, "initial replication", "InProgress", progress={"fraction": 0.5})
    said = call(Recorded(job("InProgress", begun), job("Succeeded", begun)), "job", "wait", JOB, env=KNOWN)
    assert said.err == ""


def test_a_result_is_shown_without_its_nested_parts(capsys: pytest.CaptureFixture[str]) -> None:
    describe(job("Succeeded", result={"vm": "web-1-test", "sequence": 42, "task_seconds": {"start": 1.0}}))
    printed = capsys.readouterr().out
    assert "web-1-test" in printed
    assert "task seconds" not in printed


def test_json_of_a_followed_job_is_the_whole_job() -> None:
    ended = job("Succeeded", task(1, "start", "Succeeded"), result={"a": {"b": 1}})
    said = call(Recorded(job("InProgress"), ended), "job", "wait", JOB, "--json", env=KNOWN)
    assert json.loads(said.out) == ended


def test_progress_of_any_form_can_be_shown(screen: io.StringIO) -> None:
    for progress in ({"bytes": 5, "total_bytes": 4}, {"fraction": 0.25}, {}):
        begun = task(1, "copy", "InProgress", progress=progress)
        service = Recorded(job("InProgress", begun), job("Succeeded", begun))
        api = ApiClient(Connection(URL, "t", None), transport=service)
        assert following.follow(api, JOB)["id"] == JOB
        api.close()
    assert "copy" in screen.getvalue()


def test_a_suspended_job_says_what_it_waits_for_and_how_to_answer() -> None:
    question = {
        "waits_for": "rtm-1 never confirmed that no replica runs",
        "confirm": "I checked that it is off",
    }
    answers = iter(
        httpx.Response(200, json=job(state, result=question if state == "Suspended" else None))
        for state in ("Suspended", "Suspended", "Failed")
    )
    said = call(httpx.MockTransport(lambda _request: next(answers)), "job", "wait", JOB, env=KNOWN)
    assert said.code == 1
    assert said.err.count("rtm-1 never confirmed") == 1
    assert f"secondsite job resume {JOB} --confirm 'I checked that it is off'" in said.err


def test_the_answer_to_a_suspended_job_is_sent_word_by_word() -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json=job("InProgress"))

    words = ["job", "resume", JOB, "--confirm", "I checked that it is off"]
    said = call(httpx.MockTransport(answer), *words, env=KNOWN)
    assert said.code == 0
    assert sent[0].url.path == f"/api/v1/jobs/{JOB}/resume"
    assert json.loads(sent[0].content) == {"confirm": "I checked that it is off"}
