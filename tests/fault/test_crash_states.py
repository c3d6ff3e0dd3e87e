"""The crash-point sweep's own parts: it builds every legal state, no illegal one, and sees every write."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from secondsite import durable
from support.crash_disk import Tree
from support.crash_recorder import Recorder, UnrecordedError
from support.crash_states import Cuts, choices, write_tree
from support.power import PowerCutError

pytestmark = pytest.mark.fault


def states(recorder: Recorder, limit: int = 1000) -> list[Tree]:
    cuts = Cuts(recorder.start, recorder.log, list(recorder.live.folders))
    cuts.forward(len(recorder.log))
    return [state.tree for state in cuts.states(limit)]


def test_an_unsynced_rename_may_be_there_or_not_with_or_without_the_data(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    recorder = Recorder(tmp_path)
    with recorder.recording():
        fd = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"new")
        os.close(fd)
        (tmp_path / "new").replace(tmp_path / "a")
    found = states(recorder)
    for data in (b"", b"new", bytes(3)):
        assert {"a": data} in found
    assert {"a": b"old"} in found
    assert {"a": b"old", "new": b"new"} in found
    assert not any("a" not in tree for tree in found)


def test_what_is_synced_name_and_data_is_always_there(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.recording():
        durable.write_atomic(tmp_path / "a", b"data")
        (tmp_path / "b").touch()
    assert sorted(states(recorder), key=len) == [{"a": b"data"}, {"a": b"data", "b": b""}]


def test_a_synced_file_without_its_folder_may_have_no_name(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with recorder.recording():
        (tmp_path / "f").mkdir()
        with (tmp_path / "f" / "a").open("wb") as file:
            file.write(b"data")
            file.flush()
            os.fsync(file.fileno())
        durable.fsync_dir(tmp_path / "f")
    assert states(recorder) == [{}, {"f": None, "f/a": b"data"}]


def test_a_write_is_torn_at_sectors_and_its_size_may_come_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"o" * 512)
    recorder = Recorder(tmp_path)
    with recorder.recording(), (tmp_path / "a").open("r+b", buffering=0) as file:
        file.write(b"n" * 1536)
    found = [tree["a"] for tree in states(recorder)]
    for old_or_new in ("o", "n", "nn", "nnn", "o\0n", "o\0\0", "n\0n"):
        assert b"".join(letter.encode() * 512 for letter in old_or_new) in found
    assert all(data is not None and set(data) <= set(b"on\0") for data in found)


def test_a_rename_between_folders_may_be_there_by_halves(tmp_path: Path) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    (tmp_path / "from" / "a").write_bytes(b"data")
    recorder = Recorder(tmp_path)
    with recorder.recording():
        (tmp_path / "from" / "a").replace(tmp_path / "to" / "a")
    names = {frozenset(name for name, data in tree.items() if data) for tree in states(recorder)}
    assert names == {frozenset(each) for each in (["from/a"], ["to/a"], ["from/a", "to/a"], [])}


def test_more_states_than_the_limit_are_chosen_from_in_a_stated_order() -> None:
    counts = [3] * 9
    found = list(choices(counts, 100))
    assert len(found) == len(set(found)) == 100
    assert found[:2] == [(0,) * 9, (1,) * 9]
    assert {(1,) * at + (2,) + (0,) * (8 - at) for at in range(9)} <= set(found)
    assert len(list(choices([3, 2], 6))) == 6


def test_a_state_is_built_as_it_was(tmp_path: Path) -> None:
    tree: Tree = {"f": None, "f/a": bytes(5000) + b"x", "f/empty": b"", "f/zeros": bytes(9000)}
    write_tree(tree, tmp_path)
    assert Recorder(tmp_path).live.tree() == tree


def test_holes_and_copies_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"d" * 8192)
    recorder = Recorder(tmp_path)
    with recorder.recording():
        durable.copy_sparse(tmp_path / "a", tmp_path / "b")
        with (tmp_path / "b").open("r+b") as file:
            durable.punch_hole(file.fileno(), 0, 4096)
    assert recorder.live.tree()["b"] == bytes(4096) + b"d" * 4096
    assert states(recorder) == [{"a": b"d" * 8192}] * 2 + [
        {"a": b"d" * 8192, "b": data} for data in (b"d" * 8192, bytes(4096) + b"d" * 4096)
    ]


@pytest.mark.parametrize("way", ["mapping", "libc"])
def test_a_write_that_goes_around_the_recorder_is_noticed(tmp_path: Path, way: str) -> None:
    (tmp_path / "a").write_bytes(b"old!")
    recorder = Recorder(tmp_path)
    with pytest.raises(UnrecordedError), recorder.recording():
        unseen(tmp_path / "a", way)


def unseen(path: Path, way: str) -> None:
    with path.open("r+b") as file:
        if way == "mapping":
            with mmap.mmap(file.fileno(), 4) as mapped:
                mapped[:] = b"new!"
        else:
            ctypes.CDLL(None).write(file.fileno(), b"new!", 4)
        os.fsync(file.fileno())


def test_a_killed_process_does_nothing_more(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.kill_at = 2
    with recorder.recording():
        with pytest.raises(PowerCutError):
            durable.write_atomic(tmp_path / "a", b"data")
        with pytest.raises(PowerCutError):
            (tmp_path / "b").mkdir()
        recorder.revive()
        (tmp_path / "c").mkdir()
    assert sorted(path.name.partition(".")[0] for path in tmp_path.iterdir()) == ["a", "c"]
