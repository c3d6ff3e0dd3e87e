"""`secondsite node export`: what it says, how far it is, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secondsite.cli import app
from secondsite.errors import OperationRefusedError
from secondsite.model.ids import DiskKey
from secondsite.node.medium import Export, ExportedDisk
from secondsite.node.source import export as exports

DONE = Export(
    "web", "uuid-1", "2026-11-23T05:00:00Z", {DiskKey("vda"): ExportedDisk("vda.raw", 1 << 30, "ab" * 32)}
)

Tell = Callable[[int, int], None]


def run(*more: str) -> Any:
    return CliRunner().invoke(app, ["node", "export", "web", "--output", "/mnt/web", *more])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the node's export was asked for; it succeeds."""
    calls: list[tuple[Any, ...]] = []

    def export_machine(
        state: Path, vm: str, output: Path, progress: Tell, *, exclude: Collection[str]
    ) -> Export:
        calls.append((state, vm, output, list(exclude)))
        progress(1, 2)
        return DONE

    monkeypatch.setattr(exports, "export_machine", export_machine)
    return calls


def test_it_names_the_files_and_what_to_do_with_them(asked: list[tuple[Any, ...]]) -> None:
    done = run("--state", "/srv/node", "--exclude-disk", "vdb")
    assert done.exit_code == 0
    assert asked == [(Path("/srv/node"), "web", Path("/mnt/web"), ["vdb"])]
    assert done.stdout.split() == ["vda", "vda.raw", "1.0", "GiB", "BLAKE3", "ab" * 32]
    assert "secondsite item protect web --seed FOLDER" in done.stderr


@pytest.mark.usefixtures("asked")
def test_json_says_what_export_json_says(tmp_path: Path) -> None:
    done = run("--json")
    assert json.loads(done.stdout) == {**DONE.to_dict(), "folder": "/mnt/web"}


def test_a_refusal_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_more: Any) -> Export:
        raise OperationRefusedError("web is protected by this node already", hint="disable it first")

    monkeypatch.setattr(exports, "export_machine", refuse)
    done = run("--json")
    assert done.exit_code == 3
    assert json.loads(done.stderr)["error"]["hint"] == "disable it first"


def test_a_host_without_a_node_is_exit_code_4(tmp_path: Path) -> None:
    done = run("--state", str(tmp_path))
    assert done.exit_code == 4
    assert "holds no enrolled node" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_closed_terminal_ends_it_in_order(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    cleaned: list[bool] = []

    def export_machine(*_args: Any, **_more: Any) -> Export:
        try:
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass
            raise AssertionError("it goes on")
        finally:
            os.kill(os.getpid(), number)  # who is impatient does not cut the cleaning up
            cleaned.append(True)

    monkeypatch.setattr(exports, "export_machine", export_machine)
    # What a terminal gives; whoever runs the tests in the background may have it ignored.
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)
    try:
        done = run()
        assert (done.exit_code, cleaned) == (130, [True])
        assert "nothing is left of the export" in done.stderr
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_under_nohup_a_closed_terminal_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def export_machine(*_args: Any, **_more: Any) -> Export:
        os.kill(os.getpid(), signal.SIGHUP)
        return DONE

    monkeypatch.setattr(exports, "export_machine", export_machine)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run().exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
