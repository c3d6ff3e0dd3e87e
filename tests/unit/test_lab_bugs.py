"""The bugs that the proofs on real guests plant in daemons: each still finds its place, and reaches only the daemon that it is of."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.lab_bugs import BUGS, planted


@pytest.mark.parametrize("name", BUGS)
def test_what_a_bug_replaces_is_there(name: str) -> None:
    for where, attribute, instead in BUGS[name].places():
        assert callable(getattr(where, attribute))
        assert getattr(where, attribute) is not instead


def test_a_bug_is_planted_in_its_daemon_and_in_nothing_else() -> None:
    with planted("last-changes-stay"):
        # A node without a state folder ends at once; what it loaded until then is told by the interpreter.
        node = _loaded("node", "run", "--state", "/nonexistent")
        assert "support.lab_bugs" in node
        assert "support.lab_bugs" not in _loaded("node", "--help")
    assert "PLANTED" not in os.environ


def _loaded(*arguments: str) -> str:
    """The modules that such a command loads before it ends."""
    process = subprocess.run(
        [sys.executable, "-m", "secondsite", *arguments],
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return process.stderr
