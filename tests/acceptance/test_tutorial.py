"""The tutorial's commands do what it says, in its order, as a newcomer types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.lab import sites
from secondsite.lab.guest.builder import GuestBuilder
from secondsite.lab.guest.definition import domain_xml
from secondsite.lab.guest.disks import create_disks

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial" / "first-failover.md"


def commands() -> list[list[str]]:
    """The commands of the tutorial's code blocks, without comments; `make` is for those who have not installed yet."""
    blocks = re.findall(r"^```\n(.*?)^```", TUTORIAL.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line[0] == "secondsite"]


@pytest.fixture
def lab(short_path: Path) -> Iterator[dict[str, Any]]:
    folder = short_path / "lab"
    described = sites.up(folder)
    try:
        hypervisor = sites.Lab.load(folder).hypervisor("primary")
        files = GuestBuilder().build().copy_to(short_path / "boot")
        disks = [hypervisor.own(disk) for disk in create_disks(hypervisor.storage, "web-1", size=128 << 20)]
        connection = hypervisor.connect()
        connection.defineXML(domain_xml("web-1", files, disks)).create()
        connection.close()
        yield described
    finally:
        if (folder / "lab.json").exists():
            sites.down(folder, purge=True)


def test_every_command_of_the_tutorial_succeeds(lab: dict[str, Any], short_path: Path) -> None:
    assert len(commands()) >= 20
    environment = {**os.environ, "SECONDSITE_CONFIG": lab["config"]}

    def run(arguments: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            env=environment,
            cwd=short_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    deadline = time.monotonic() + 30
    while "web-1" not in run(["secondsite", "item", "protectable", "--json"]):
        assert time.monotonic() < deadline
    for command in commands():
        # After the failback the journal is at the second site again.
        journals = lab["sites"]["secondary"]["journals"]
        item = next(iter(Path(journals).iterdir()), Path("none")).name if Path(journals).exists() else "none"
        places = {"lab-run": lab["dir"], "FOLDER/ITEM": f"{journals}/{item}", "FOLDER": journals}
        output = run([places.get(word, word) for word in command])
        if command[1:3] == ["journal", "extract"]:
            assert {"vda.raw", "vdb.raw"} <= {path.name for path in (short_path / "disks").iterdir()}
        if command[1:3] == ["point", "list"]:
            assert "crash" in output
