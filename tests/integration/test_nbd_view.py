"""The view process over real journals: each point reads as it was, whatever is killed; bases may be qcow2 images."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from secondsite.blocks import DigestTable
from secondsite.errors import UnavailableError
from secondsite.journal import Journal
from secondsite.journal.prepared import Prepared
from secondsite.model.ids import DiskKey, Sequence
from secondsite.model.manifest import DiskPoint, PointKind
from secondsite.nbd.image import base_opener, shared_image, stop_shared
from secondsite.node.target.views import Views
from support.nbd_points import EPOCH, ITEM, KEY, MIB, History, fresh_journal, manifest_of
from support.nbd_wire import Client

pytestmark = pytest.mark.integration

VDA, VDB = DiskKey("vda"), DiskKey("vdb")


class ViewProcess:
    def __init__(self, journal: Path, socket: Path, *options: str) -> None:
        self.socket = socket
        argv = [
            sys.executable,
            "-m",
            "secondsite.nbd.view",
            "--journal",
            str(journal),
            "--socket",
            str(socket),
        ]
        self.process = subprocess.Popen(
            [*argv, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=60)[1]
        return dict(json.loads(line))

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def serving(journal: Path, socket: Path, *options: str) -> Iterator[ViewProcess]:
    view = ViewProcess(journal, socket, *options)
    try:
        view.ready()
        yield view
    finally:
        if view.process.poll() is None:
            view.end(signal.SIGKILL)


def copy(socket: Path, disk: str) -> bytes:
    target = socket.with_name("copy")
    target.unlink(missing_ok=True)
    subprocess.run(["nbdcopy", f"nbd+unix:///{disk}?socket={socket}", str(target)], check=True, timeout=60)
    return target.read_bytes()


@pytest.fixture
def history(short_path: Path) -> Iterator[History]:
    with fresh_journal(short_path / "journal") as journal:
        history = History(journal)
        history.initial()
        for _ in range(3):
            history.delta()
        yield history


def test_each_point_is_served_as_it_was(history: History, short_path: Path) -> None:
    for sequence in (1, 3, 4):
        with serving(short_path / "journal", short_path / "s", "--sequence", str(sequence)) as view:
            for disk, content in history.points[sequence].items():
                assert copy(view.socket, disk) == content


def test_ready_line_says_what_is_served(history: History, short_path: Path) -> None:
    view = ViewProcess(short_path / "journal", short_path / "s")
    assert view.ready() == {
        "ready": True,
        "pid": view.process.pid,
        "socket": str(short_path / "s"),
        "sequence": 4,
        "disks": {"vda": 4 * MIB, "vdb": MIB + 512},
    }
    assert view.end(signal.SIGTERM)[0] == 0
    assert not view.socket.exists()


def test_verified_view_reads_the_same(history: History, short_path: Path) -> None:
    with serving(short_path / "journal", short_path / "s", "--verify", "--mode", "0666") as view:
        assert view.socket.stat().st_mode & 0o777 == 0o666
        assert copy(view.socket, "vda") == history.points[4][VDA]


@pytest.mark.fault
def test_killed_view_starts_again_over_its_socket(history: History, short_path: Path) -> None:
    with serving(short_path / "journal", short_path / "s", "--sequence", "2") as view:
        client = Client.connect(view.socket)
        client.go("vda")
        view.end(signal.SIGKILL)
        assert client.ended()
        client.close()
        assert view.socket.exists()
    with serving(short_path / "journal", short_path / "s", "--sequence", "2") as view:
        assert copy(view.socket, "vda") == history.points[2][VDA]


def test_view_prepared_by_a_node_reads_the_same(history: History, short_path: Path) -> None:
    views = Views(short_path)
    socket = views.ensure(
        "v", short_path / "journal", Sequence(3), partial(history.journal.prepare_view, Sequence(3))
    )
    try:
        assert Prepared.load(views.place("v").prepared) is not None
        for disk, content in history.points[3].items():
            assert copy(socket, disk) == content
    finally:
        views.end("v")
    assert not list(short_path.glob("v*"))


def test_view_prepared_by_a_node_loads_neither_numpy_nor_what_changes_a_journal(
    history: History, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine waits for this process to start: they were more than half of that."""
    history.journal.prepare_view(Sequence(3), short_path / "prepared")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # each import is a line on stderr
    options = ("--sequence", "3", "--prepared", str(short_path / "prepared"))
    view = ViewProcess(short_path / "journal", short_path / "s", *options)
    view.ready()
    assert copy(view.socket, "vda") == history.points[3][VDA]
    _, said = view.end(signal.SIGTERM)
    loaded = {
        line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")
    }
    assert "secondsite.journal.prepared" in loaded
    assert "numpy" not in loaded
    assert {name for name in loaded if name.startswith(("secondsite.journal.", "secondsite.hrl."))} == {
        "secondsite.hrl.lookup",
        *(
            f"secondsite.journal.{name}"
            for name in (
                "applied",
                "base",
                "documents",
                "logs",
                "pins",
                "points",
                "prepared",
                "store",
                "view",
            )
        ),
    }
    assert not loaded & {"secondsite.blocks", "secondsite.nbd.image", "pydantic", "structlog", "yaml", "ssl"}


def test_view_that_a_node_cannot_prepare_says_itself_what_is_wrong(
    history: History, short_path: Path
) -> None:
    views = Views(short_path)
    missing = partial(history.journal.prepare_view, Sequence(99))
    try:
        with pytest.raises(UnavailableError, match="there is no point 99"):
            views.ensure("v", short_path / "journal", Sequence(99), missing)
    finally:
        views.end("v")


def test_view_does_not_wait_for_ever_for_what_nobody_prepares(history: History, short_path: Path) -> None:
    with serving(short_path / "journal", short_path / "s", "--prepared", str(short_path / "nothing")) as view:
        assert copy(view.socket, "vda") == history.points[4][VDA]


def test_point_that_is_missing_ends_with_its_error(history: History, short_path: Path) -> None:
    view = ViewProcess(short_path / "journal", short_path / "s", "--sequence", "99")
    _, said = view.process.communicate(timeout=60)
    assert view.process.returncode == 1
    assert json.loads(said.splitlines()[-1])["error"]["code"] == "not_found"
    assert not view.socket.exists()


@pytest.fixture
def adopted(short_path: Path) -> Iterator[History]:
    """A journal whose base is a qcow2 image that belonged to a machine."""
    image, run = short_path / "machine.qcow2", short_path / "run"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(2 * MIB)], check=True)
    content = b"".join(bytes([at % 251]) * 4096 for at in range(256)) + bytes(MIB)
    with shared_image(image, "qcow2", run, writable=True) as base:
        base.write(0, content[:MIB])
        base.sync()
    stop_shared(image, run)
    table = short_path / "vda.tbl"
    with DigestTable.create(table, 2 * MIB, KEY) as cells:
        cells.mark_unknown(0, 512)
        cells.sync()
    manifest = manifest_of(7, PointKind.DELTA, None, {VDA: DiskPoint(2 * MIB)})
    journal = Journal.adopt(
        short_path / "journal", manifest=manifest, epoch=EPOCH, key=KEY,
        images={VDA: image}, tables={VDA: table}, open_base=base_opener(run),
    )  # fmt: skip
    with journal:
        history = History(journal)
        history.resume(manifest, {VDA: content})
        history.delta()
        history.delta()
        yield history
    stop_shared(image, run)


def test_journal_on_a_qcow2_image_is_served_while_its_writer_has_it_open(
    adopted: History, short_path: Path
) -> None:
    image, run = short_path / "machine.qcow2", short_path / "run"
    for sequence in (7, 8, 9):
        options = ("--sequence", str(sequence), "--run-dir", str(run))
        with (
            serving(short_path / "journal", short_path / "s", *options) as view,
            shared_image(image, "qcow2", run, writable=True) as writer,
        ):
            assert copy(view.socket, "vda") == adopted.points[sequence][VDA]
            writer.sync()
    assert adopted.journal.item == ITEM
