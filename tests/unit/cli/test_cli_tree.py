"""Every command explains itself: help, an example, --json; and this folder's tests leave none out."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from secondsite import __version__
from secondsite.cli import app

ELSEWHERE = {
    "journal": "tests/unit/journal/test_journal_commands.py",
    "demo": "the acceptance tests",
    "lab": "the acceptance tests",
    "node run": "the integration tests",
    "service run": "the integration tests",
}
"""Commands, or nouns, whose tests lie elsewhere."""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its words, such as "item list"."""

    def walk(found: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        children = getattr(found, "commands", None)
        if children is None:
            yield " ".join(words), found
            return
        for name, child in children.items():
            yield from walk(child, (*words, name))

    return walk(typer.main.get_command(app), ())


COMMANDS = dict(commands())


def test_the_tree_is_walked_whole() -> None:
    assert len(COMMANDS) > 40
    assert {
        "item protect",
        "job wait",
        "journal extract",
        "node run",
        "service init",
        "demo",
    } <= COMMANDS.keys()


@pytest.mark.parametrize("words", COMMANDS)
def test_help_says_what_it_does_and_shows_an_example_that_parses(words: str) -> None:
    done = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 0
    command = COMMANDS[words]
    assert command.help
    assert command.help.strip().splitlines()[0].rstrip().endswith((".", ";", ":")), "help is a sentence"
    epilog = " ".join((command.epilog or "").split())
    assert epilog.startswith("Example: secondsite "), epilog
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stdout).split())
    assert epilog in shown, "the example is shown as it is written"
    example = shlex.split(epilog.removeprefix("Example: secondsite "))
    assert example[: len(words.split())] == words.split()
    command.make_context(words, example[len(words.split()) :], resilient_parsing=False)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_prints_json_on_request(words: str) -> None:
    assert any("--json" in option.opts for option in COMMANDS[words].params)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_is_explained(words: str) -> None:
    assert [option.name for option in COMMANDS[words].params if not getattr(option, "help", None)] == []


def test_every_command_is_called_by_a_test() -> None:
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_cli_*.py")]
    called = " ".join(re.sub(r'["\',(\s]+', " ", text) for text in texts)
    left = {
        words
        for words in COMMANDS
        if not any(words == other or words.startswith(f"{other} ") for other in ELSEWHERE)
        and not re.search(rf"(\bjson|\bok|\brun|\[) {re.escape(words)}\b", called)
    }
    assert left == set()


def test_a_noun_alone_and_the_command_alone_print_help() -> None:
    for words in ([], ["item"], ["journal"]):
        done = CliRunner().invoke(app, words)
        assert "Usage" in done.stdout + done.stderr


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == __version__


def test_a_command_that_does_not_exist_is_exit_code_2() -> None:
    assert CliRunner().invoke(app, ["item", "teleport"]).exit_code == 2


def test_json_errors_are_json_on_standard_error() -> None:
    done = CliRunner().invoke(app, ["item", "list", "--json"])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert json.loads(done.stderr)["error"]["code"] == "invalid_input"
