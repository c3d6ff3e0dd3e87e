"""Detached children: known by pid, start time and boot; adopted after their parent's death; ended only by their own pid."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.errors import ConflictError, NotFoundError, TimeoutExceededError, UnavailableError
from secondsite.processes import ProcessRef, find, log_tail, spawn, terminate, wait_ready

# Says "ready", then lives until it is ended.
STAY = [sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)\nwhile 1: signal.pause()",
]


class Place:
    def __init__(self, folder: Path) -> None:
        self.pid_file = folder / "child.pid"
        self.log_file = folder / "child.log"

    def spawn(self, argv: list[str]) -> ProcessRef:
        return spawn(argv, pid_file=self.pid_file, log_file=self.log_file)

    def wait_for(self, text: str, ref: ProcessRef, timeout_s: float = 20) -> None:
        wait_ready(
            lambda: text in log_tail(self.log_file),
            ref=ref,
            what="the child",
            log_file=self.log_file,
            timeout_s=timeout_s,
        )


def wait_for_end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 20)[0]
    finally:
        os.close(pidfd)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    left = find(place.pid_file)
    if left is not None:
        terminate(left, 0)


def test_spawned_process_is_found_by_its_pid_file_until_it_ends(place: Place) -> None:
    ref = place.spawn(STAY)
    place.wait_for("ready", ref)
    assert find(place.pid_file) == ref
    terminate(ref, 20)
    assert not ref.alive
    assert find(place.pid_file) is None


def test_child_is_a_session_of_its_own_and_reads_nothing(place: Place) -> None:
    ref = place.spawn(
        [sys.executable, "-c", "import os, sys; print(os.getsid(0) == os.getpid(), repr(sys.stdin.read()))"]
    )
    place.wait_for("True ''", ref)


def test_pid_file_exists_before_the_program_runs(place: Place) -> None:
    ref = place.spawn(["cat", str(place.pid_file)])
    place.wait_for(f'"pid": {ref.pid}', ref)


def test_second_spawn_over_a_live_process_is_refused(place: Place) -> None:
    ref = place.spawn(STAY)
    with pytest.raises(ConflictError, match="still runs"):
        place.spawn(STAY)
    assert find(place.pid_file) == ref


def test_program_that_is_missing_is_named(place: Place) -> None:
    with pytest.raises(NotFoundError, match="no-such-program"):
        place.spawn(["no-such-program"])
    assert not place.pid_file.exists()


def test_child_that_ignores_sigterm_is_killed_after_the_timeout(place: Place) -> None:
    ref = place.spawn(STUBBORN)
    place.wait_for("ready", ref)
    terminate(ref, 0.05)
    assert not ref.alive


def test_terminate_of_an_ended_process_does_nothing(place: Place) -> None:
    ref = place.spawn(STAY)
    terminate(ref, 20)
    terminate(ref, 20)


def test_reused_pid_is_neither_found_nor_killed(place: Place) -> None:
    ref = place.spawn(STAY)
    earlier = ProcessRef(ref.pid, ref.start_time - 1)
    fields = json.loads(place.pid_file.read_bytes())
    stale = place.pid_file.with_name("stale.pid")
    stale.write_text(json.dumps({**fields, "start_time": earlier.start_time}))
    assert find(stale) is None
    assert not earlier.alive
    terminate(earlier, 0)
    assert ref.alive


def test_pid_file_of_an_earlier_boot_is_not_believed(place: Place) -> None:
    place.spawn(STAY)
    fields = json.loads(place.pid_file.read_bytes())
    stale = place.pid_file.with_name("stale.pid")
    stale.write_text(json.dumps({**fields, "boot": "another"}))
    assert find(stale) is None


@pytest.mark.parametrize(
    "content", [b"", b"123\n", b"{}", b"\xff", b'{"pid": "x", "start_time": 1, "boot": ""}']
)
def test_damaged_pid_file_names_nobody(place: Place, content: bytes) -> None:
    place.pid_file.write_bytes(content)
    assert find(place.pid_file) is None


def test_zombie_counts_as_ended() -> None:
    child = subprocess.Popen(["true"])
    fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    ref = ProcessRef(child.pid, int(fields[19]))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert not ref.alive
    terminate(ref, 0)
    child.wait()


def test_wait_ready_reports_what_a_dead_child_said(place: Place) -> None:
    ref = place.spawn(["sh", "-c", "echo the disk is on fire >&2; exit 3"])
    with pytest.raises(UnavailableError, match="the disk is on fire"):
        place.wait_for("never", ref)


def test_wait_ready_gives_up_and_leaves_the_child_running(place: Place) -> None:
    ref = place.spawn(STAY)
    with pytest.raises(TimeoutExceededError):
        place.wait_for("never", ref, timeout_s=0.05)
    assert ref.alive


def test_previous_log_is_kept_once(place: Place) -> None:
    for text in ("one", "two", "three"):
        place.wait_for(text, place.spawn(["echo", text]))
        left = find(place.pid_file)
        if left is not None:
            terminate(left, 20)
    assert log_tail(place.log_file) == "three"
    assert log_tail(place.log_file.with_name("child.log.old")) == "two"


def test_child_outlives_a_killed_parent_and_is_adopted(place: Place) -> None:
    program = (
        "import os, sys; from pathlib import Path; from secondsite.processes import spawn\n"
        "spawn(sys.argv[3:], pid_file=Path(sys.argv[1]), log_file=Path(sys.argv[2]))\n"
        "os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", program, str(place.pid_file), str(place.log_file), *STAY], timeout=60
    )
    assert parent.returncode == -9
    ref = find(place.pid_file)
    assert ref is not None
    place.wait_for("ready", ref)
    terminate(ref, 20)
    assert find(place.pid_file) is None


def test_parent_that_dies_before_the_pid_file_leaves_no_child(place: Place) -> None:
    program = (
        "import os, sys; from pathlib import Path; from secondsite import processes\n"
        "processes._write_pid_file = lambda path, ref: (print(ref.pid, flush=True), os.kill(os.getpid(), 9))\n"
        "processes.spawn(sys.argv[3:], pid_file=Path(sys.argv[1]), log_file=Path(sys.argv[2]))"
    )
    marker = place.pid_file.with_name("ran")
    parent = subprocess.run(
        [sys.executable, "-c", program, str(place.pid_file), str(place.log_file), "touch", str(marker)],
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert parent.returncode == -9
    wait_for_end(int(parent.stdout))
    assert not marker.exists()
