"""What goes wrong between a person and the service: exit codes, hints, settings that are missing or wrong."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest
import typer

from secondsite.api_client import ApiClient, Connection
from secondsite.cli import output
from secondsite.cli.client import find_connection
from secondsite.errors import InvalidInputError, SecondSiteError, UnavailableError, UnsupportedError
from support.cli_world import URL, Cli, call

KNOWN = {"SECONDSITE_URL": URL, "SECONDSITE_TOKEN": "t"}


def answering(status: int, code: str) -> httpx.MockTransport:
    fields = {
        "code": code,
        "message": "it is so",
        "hint": "do this",
        "retry": "never",
        "attributes": {"a": 1},
    }
    return httpx.MockTransport(lambda _request: httpx.Response(status, json={"error": fields}))


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "invalid_input", 2),
        (501, "unsupported", 2),
        (409, "operation_refused", 3),
        (409, "conflict", 3),
        (409, "stale_epoch", 3),
        (404, "not_found", 4),
        (401, "unauthenticated", 5),
        (403, "forbidden", 5),
        (503, "unavailable", 6),
        (504, "timeout", 6),
        (422, "corrupt", 1),
        (507, "no_space", 1),
        (500, "internal", 1),
    ],
)
def test_each_class_of_error_has_its_exit_code_message_and_hint(
    status: int, code: str, exit_code: int
) -> None:
    said = call(answering(status, code), "item", "list", env=KNOWN)
    assert (said.code, said.out) == (exit_code, "")
    assert said.err == f"error [{code}]: it is so\n  hint: do this\n"
    machine = call(answering(status, code), "item", "list", "--json", env=KNOWN)
    assert (machine.code, machine.out) == (exit_code, "")
    error = json.loads(machine.err)["error"]
    assert (error["code"], error["message"], error["hint"]) == (code, "it is so", "do this")


@pytest.mark.parametrize(("method", "asked"), [("get", 2), ("post", 1)])
def test_a_service_that_hangs_up_is_asked_again_if_that_changes_nothing(method: str, asked: int) -> None:
    """It restarted, or closed a kept connection at the moment when it was taken up."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if len(requests) == 1:
            raise httpx.RemoteProtocolError(
                "Server disconnected without sending a response.", request=request
            )
        return httpx.Response(200, json={"name": "web-1"})

    client = ApiClient(Connection(URL, "t", None), transport=httpx.MockTransport(answer))
    with nullcontext() if method == "get" else pytest.raises(UnavailableError):
        assert getattr(client, method)("/items/web-1") == {"name": "web-1"}
    assert len(requests) == asked


def test_markup_in_an_error_is_text() -> None:
    fields = {"code": "not_found", "message": "no item [bold]x[/]", "hint": "[/]"}
    transport = httpx.MockTransport(lambda _request: httpx.Response(404, json={"error": fields}))
    assert call(transport, "item", "list", env=KNOWN).err == (
        "error [not_found]: no item [bold]x[/]\n  hint: [/]\n"
    )


def test_a_service_that_does_not_answer_is_exit_code_6_and_named() -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    said = call(httpx.MockTransport(refuse), "item", "list", env=KNOWN)
    assert said.code == 6
    assert f"{URL} does not answer" in said.err
    assert "is the service running" in said.err


def test_a_command_goes_on_at_the_address_where_the_standby_answers() -> None:
    asked: list[tuple[str, str]] = []

    def only_second(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.host))
        if request.url.host == "one.test":
            raise httpx.ConnectError("connection refused")
        return httpx.Response(200, json=[])

    env = {**KNOWN, "SECONDSITE_URL": "https://one.test https://two.test/"}
    assert call(httpx.MockTransport(only_second), "item", "list", env=env).code == 0
    assert call(httpx.MockTransport(only_second), "site", "create", "x", env=env).code == 0
    assert asked == [("GET", "one.test"), ("GET", "two.test"), ("POST", "one.test"), ("POST", "two.test")]


def test_what_may_have_been_done_is_not_asked_for_again_at_another_address() -> None:
    asked: list[str] = []

    def cut(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        raise httpx.ReadError("connection reset")

    env = {**KNOWN, "SECONDSITE_URL": "https://one.test https://two.test"}
    said = call(httpx.MockTransport(cut), "site", "create", "x", env=env)
    assert (said.code, asked) == (6, ["one.test"])
    assert "https://one.test does not answer" in said.err


def test_an_answer_that_is_not_the_services_is_exit_code_6() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(502, text="<html>bad gateway</html>"))
    said = call(transport, "item", "list", env=KNOWN)
    assert said.code == 6
    assert "502" in said.err


def test_a_wrong_token_is_exit_code_5(cli: Cli) -> None:
    said = call(cli.transport, "item", "list", env={**cli.env, "SECONDSITE_TOKEN": "wrong"})
    assert said.code == 5


def test_an_unknown_item_is_exit_code_4(cli: Cli) -> None:
    for words in (
        ("item", "show", "x"),
        ("point", "list", "x"),
        ("item", "commit", "x"),
        ("job", "show", "x"),
    ):
        assert cli.run(*words).code == 4


# -- settings ----------------------------------------------------------------------------------------------


def test_without_settings_the_error_says_how_to_give_them() -> None:
    said = call(answering(500, "internal"), "item", "list")
    assert said.code == 2
    for way in (
        "no service URL is known",
        "--config",
        "SECONDSITE_CONFIG",
        "SECONDSITE_URL",
        "SECONDSITE_TOKEN",
    ):
        assert way in said.err
    said = call(answering(500, "internal"), "item", "list", env={"SECONDSITE_URL": URL})
    assert "no token is known" in said.err


def test_the_file_of_config_is_used_and_the_environment_wins(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "cli.json"
    file.write_text(json.dumps({"url": f"{URL}/", "token": cli.env["SECONDSITE_TOKEN"]}))
    assert call(cli.transport, "--config", str(file), "site", "list").code == 0
    assert call(cli.transport, "site", "list", env={"SECONDSITE_CONFIG": str(file)}).code == 0
    wrong = {"SECONDSITE_CONFIG": str(file), "SECONDSITE_TOKEN": "wrong"}
    assert call(cli.transport, "site", "list", env=wrong).code == 5
    assert call(cli.transport, "site", "list").code == 2, "--config is not remembered"


def test_the_file_in_the_home_folder_is_the_last_resort(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "home" / ".config" / "secondsite" / "cli.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"url": URL, "token": cli.env["SECONDSITE_TOKEN"]}))
    assert call(cli.transport, "site", "list").code == 0


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not read"), ("{", "does not read"), ("[]", "no object")]
)
def test_a_settings_file_that_is_missing_or_damaged_is_named(
    tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "cli.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidInputError, match=words) as caught:
        find_connection(config=file)
    assert str(file) in caught.value.message


def test_a_ca_file_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    said = call(
        answering(500, "internal"), "item", "list", env={**KNOWN, "SECONDSITE_CA": str(tmp_path / "ca.pem")}
    )
    assert (said.code, "ca.pem does not load" in said.err) == (2, True)


# -- what a command needs ----------------------------------------------------------------------------------


def test_a_part_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)  # importing it raises ModuleNotFoundError
    monkeypatch.delitem(sys.modules, "secondsite.api_client")
    said = call(httpx.MockTransport(lambda _request: httpx.Response(200)), "item", "list", env=KNOWN)
    assert said.code == 2
    assert "httpx" in said.err
    assert "secondsite[cli]" in said.err


@pytest.mark.parametrize(
    ("module", "hint"), [("fastapi.routing", "secondsite[service]"), ("nbd", "python3-libnbd")]
)
def test_every_part_has_its_package(module: str, hint: str) -> None:
    with pytest.raises(typer.Exit) as caught, output.reporting(as_json=False):
        raise ModuleNotFoundError(module, name=module)
    assert isinstance(caught.value.__cause__, UnsupportedError)
    assert hint in caught.value.__cause__.hint


def test_a_missing_module_that_is_no_part_of_ours_is_a_bug_and_shows_as_one() -> None:
    with pytest.raises(ModuleNotFoundError), output.reporting(as_json=False):
        raise ModuleNotFoundError("nonsense", name="nonsense")


def test_an_interrupt_is_exit_code_130_and_says_that_the_service_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as caught, output.reporting(as_json=False):
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
    assert "goes on" in capsys.readouterr().err


def test_every_exit_code_belongs_to_an_error_that_exists() -> None:
    def codes(kind: type[SecondSiteError]) -> set[str]:
        return {kind.code}.union(*(codes(child) for child in kind.__subclasses__()))

    assert output.EXIT_CODES.keys() <= codes(SecondSiteError)
    assert set(output.EXIT_CODES.values()) == {2, 3, 4, 5, 6}
