"""The systemd units start commands that exist, and a node's restart leaves the views of running machines alone."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer.main

from secondsite.cli import app

UNITS = Path(__file__).parents[3] / "packaging" / "systemd"


def settings(unit: str) -> dict[str, str]:
    """Return the unit's settings; a later one of the same name replaces the earlier."""
    text = (UNITS / f"{unit}.service").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("unit", ["secondsite-service", "secondsite-node"])
def test_a_unit_starts_a_command_with_options_that_it_has(unit: str) -> None:
    program, *words = shlex.split(settings(unit)["ExecStart"])
    assert program.endswith("/secondsite")
    command = typer.main.get_command(app)
    while children := getattr(command, "commands", None):
        command = children[words.pop(0)]
    command.make_context("run", words)


def test_a_node_that_stops_takes_no_view_with_it() -> None:
    assert settings("secondsite-node")["KillMode"] == "process"


def test_both_come_back_by_themselves() -> None:
    for unit in ("secondsite-service", "secondsite-node"):
        assert settings(unit)["Restart"] == "always"
