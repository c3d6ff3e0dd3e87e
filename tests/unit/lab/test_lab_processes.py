"""Processes are recognised by more than their number; leftovers are found; capabilities are kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.errors import InvalidInputError
from secondsite.lab import capabilities, processes
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.processes import Process
from secondsite.lab.recipe import Mode
from support.leftovers import Leftovers
from support.patience import wait_until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    # The kernel shows an empty command line for a moment after the exec.
    wait_until(lambda: Path(f"/proc/{child.pid}/cmdline").read_bytes() != b"")
    yield child
    child.kill()
    child.wait()


def test_a_process_is_recognised_from_its_text(sleeper: subprocess.Popen[bytes]) -> None:
    process = Process.of(sleeper.pid)
    assert process is not None
    assert Process.parse(str(process)) == process
    assert process.alive
    assert process.command_line == ["sleep", "60"]
    assert process in list(processes.all_processes())


def test_another_process_with_the_same_number_is_neither_alive_nor_killed(
    sleeper: subprocess.Popen[bytes],
) -> None:
    process = Process.of(sleeper.pid)
    assert process is not None
    earlier = Process(process.pid, process.started - 1)
    assert not earlier.alive
    assert processes.end([earlier]) == []
    assert processes.kill([earlier]) == []
    assert sleeper.poll() is None


def test_end_and_kill_leave_nothing(sleeper: subprocess.Popen[bytes]) -> None:
    process = Process.of(sleeper.pid)
    assert process is not None
    assert processes.end([process]) == []
    assert not process.alive  # although nobody has waited for its zombie yet


def test_a_text_that_is_no_process_is_none() -> None:
    assert [Process.parse(text) for text in ("", "1", "a b", "1 2 3")] == [None] * 4


def test_leftovers_of_tests_are_found_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDSITE_TESTS", os.environ["SECONDSITE_TESTS"])  # put back at the end
    leftovers = Leftovers(patience_s=0.1, folders=[])
    assert leftovers.end_and_describe() == []
    child = subprocess.Popen(["sleep", "61"])
    lines = leftovers.end_and_describe()
    child.wait(5)
    assert len(lines) == 1
    assert f"{child.pid}: sleep 61" in lines[0]


def test_capabilities_are_kept_once_and_restored(tmp_path: Path) -> None:
    kept, first, second, target = (tmp_path / name for name in ("cache/x/kept", "first", "second", "target"))
    for folder, text in ((first, "one"), (second, "two")):
        folder.mkdir()
        (folder / "q.xml").write_text(text)
    assert not capabilities.restore(kept, target)
    capabilities.keep(tmp_path, kept)  # nothing there yet: nothing kept
    assert not kept.exists()
    capabilities.keep(first, kept)
    capabilities.keep(second, kept)
    assert capabilities.restore(kept, target)
    assert (target / "q.xml").read_text() == "one"
    assert [path.name for path in kept.parent.iterdir()] == ["kept"]


def test_capabilities_of_a_changed_binary_are_others(tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_bytes(b"1")
    before = capabilities.capability_folder(tmp_path, "session", [binary])
    assert capabilities.capability_folder(tmp_path, "session", [binary]) == before
    assert capabilities.capability_folder(tmp_path, "namespace", [binary]) != before
    binary.write_bytes(b"22")
    assert capabilities.capability_folder(tmp_path, "session", [binary]) != before


def test_a_folder_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="too long"):
        Hypervisor(Path("/tmp") / ("x" * 60), "h", mode=Mode.SESSION)
