"""Readers in other threads and processes, beside a writer that seals, folds and thins."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from secondsite.errors import NotFoundError, PinnedError, UnavailableError
from secondsite.journal import Journal
from secondsite.journal.view import View
from secondsite.model.ids import DiskKey, Sequence
from secondsite.model.policy import Policy
from support.journals import START, VDA, VDB, Model, filled
from support.power import unsynced

pytestmark = pytest.mark.fault

ROUNDS = 25
READER = """
import sys
from pathlib import Path
from secondsite.journal import Journal
view = Journal.open(Path(sys.argv[1]), writable=False).view(2, purpose="child")
print("reading", flush=True)
sys.stdin.read()
"""


def test_a_reader_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    model, journal = filled(tmp_path / "j", points=5)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "j")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"reading\n"
        done = journal.maintain(Policy(retention_points=2), START + timedelta(minutes=9))
        assert (done.folded_to, done.held_by) == (2, "child")
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert journal.maintain(Policy(retention_points=2), START + timedelta(minutes=9)).folded_to == 4
    assert list((tmp_path / "j" / "pins").glob("view-*")) == []
    model.check(journal, verify=True)


def _reads_right(view: View, contents: Mapping[DiskKey, bytes], *, verify: bool) -> bool:
    """Whether the view was read; a verifying one may be told that a fold is under way, and serves nothing then."""
    with view:
        try:
            for disk, expected in contents.items():
                for _ in range(3):
                    assert view.disks[disk].read(0, len(expected)) == expected, (view.sequence, disk)
        except UnavailableError:
            assert verify
            return False
    return True


@pytest.mark.parametrize("verify", [False, True])
def test_readers_see_whole_points_while_the_writer_works(tmp_path: Path, verify: bool) -> None:
    with unsynced():
        model, journal = filled(tmp_path / "j", points=4)
        end = threading.Event()
        failures: list[BaseException] = []
        read = [0, 0]

        def reader(number: int) -> None:
            try:
                opened = Journal.open(tmp_path / "j", writable=False)
                while not end.is_set():
                    points = opened.points()
                    chosen = points[0 if number else -1].sequence
                    try:
                        view = opened.view(chosen, purpose=f"reader {number}", verify=verify)
                    except NotFoundError:  # folded or thinned away since it was listed
                        continue
                    read[number] += _reads_right(view, model.contents[chosen], verify=verify)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=reader, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        try:
            for number in range(ROUNDS):
                _seal(model, journal, number)
                if number % 5 == 2:
                    sequences = [point.sequence for point in journal.points()]
                    held = {pin.sequence for pin in journal.pins()}
                    if len(sequences) > 3 and sequences[1] not in held:
                        _thin(journal, sequences[1])
                journal.maintain(Policy(retention_points=3), START + timedelta(minutes=9))
        finally:
            end.set()
            for thread in threads:
                thread.join(30)
        assert failures == []
        assert min(read) > 0
        journal.maintain(Policy(retention_points=3), START + timedelta(minutes=9))
        assert list(journal.verify()) == []
        model.check(journal, verify=True)


def _seal(model: Model, journal: Journal, number: int) -> None:
    """The model must know the point before a reader can see it."""
    fill = bytes([97 + number % 26])
    files = {
        VDA: model.parts(VDA, [(number % 15 * 4096, fill * 4096), (61440 + number % 8 * 512, fill * 512)]),
        VDB: model.parts(VDB, [(number % 5 * 4096, fill * 2048)]),
    }
    manifest = model.manifest(files)
    for parts in files.values():
        model.send(journal, parts)
    model.contents[manifest.sequence] = {disk: bytes(data) for disk, data in model.disks.items()}
    model.sealed(manifest, journal.seal(model.epoch, manifest.to_bytes()))


def _thin(journal: Journal, sequence: Sequence) -> None:
    try:
        journal.thin([sequence])
    except PinnedError:  # a reader was faster
        return
