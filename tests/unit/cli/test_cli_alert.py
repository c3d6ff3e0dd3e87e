"""`secondsite alert`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli_world import Cli
from support.receivers import Webhook


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.close()


def test_receivers_are_set_tested_and_forgotten(cli: Cli, webhook: Webhook, tmp_path: Path) -> None:
    secret = tmp_path / "hook.url"
    secret.write_text(webhook.url + "\n")
    assert "There is no receiver" in cli.ok("alert", "show").words
    said = cli.ok("alert", "set", "--receiver", f"hook=@{secret}", "--severity", "critical").words
    assert "s3cr3t" not in said
    assert cli.json("alert", "test")[0]["delivered"]
    assert webhook.bodies[0]["title"] == "[test] test"
    found = cli.json("alert", "set", "--per-minute", "3", "--off")
    assert (found["enabled"], found["per_minute"], found["severities"]) == (False, 3, ["critical"])
    assert [each["name"] for each in found["receivers"]] == ["hook"]
    webhook.status = 500
    failed = cli.run("alert", "test")
    assert failed.code == 1
    assert "hook no" in failed.words
    assert cli.json("alert", "set", "--remove", "hook")["receivers"] == []


def test_what_is_not_understood_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("alert", "set", "--receiver", "hook").code == 2
    assert cli.run("alert", "set", "--receiver", f"hook=@{tmp_path}/none").code == 2
    assert cli.run("alert", "set", "--receiver", "hook=nonsense://x").code == 2
    assert cli.run("alert", "set", "--remove", "ghost").code == 2
