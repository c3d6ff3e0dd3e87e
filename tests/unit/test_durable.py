import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from secondsite import durable
from secondsite.durable import FileLock
from secondsite.errors import ConflictError, NoSpaceError, UnavailableError


class Recorder:
    """Stands in for the calls of `os` whose order matters, does them, and can cut the power before the n-th."""

    def __init__(self, monkeypatch, cut_at=None):
        self.calls = []
        self.cut_at = cut_at
        for name in ("write", "fsync", "replace", "rename"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, real):
        def call(*args, **kwargs):
            if len(self.calls) == self.cut_at:
                raise PowerCutError
            self.calls.append(name)
            return real(*args, **kwargs)

        return call


class PowerCutError(Exception):
    pass


# -- atomic writes -------------------------------------------------------------------------------------------


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "state.json"
    durable.write_atomic(path, b"old")
    durable.write_atomic(path, memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_write_atomic_sets_the_mode_whatever_the_umask(tmp_path, mode):
    old = os.umask(0o077)
    try:
        durable.write_atomic(tmp_path / "file", b"x", mode=mode)
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_contents_are_synced_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    durable.write_atomic(tmp_path / "file", b"x")
    renames = [name for name in recorder.calls if name in ("replace", "rename")]
    assert len(renames) == 1
    assert recorder.calls == ["write", "fsync", renames[0], "fsync"]


@pytest.mark.parametrize("cut_at", [0, 1, 2, 3])
def test_a_cut_leaves_the_old_contents_or_the_new(tmp_path, monkeypatch, cut_at):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patched:
        Recorder(patched, cut_at)
        with pytest.raises(PowerCutError):
            durable.write_atomic(path, b"new")
    assert path.read_bytes() == (b"new" if cut_at == 3 else b"old")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_the_old_contents_stay(tmp_path, monkeypatch, number):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(fd, data):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpaceError) as caught:
        durable.write_atomic(path, b"new")
    assert caught.value.attributes == {"path": str(path)}
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        durable.write_atomic(tmp_path / "missing" / "file", b"x")


def test_rename_durable_moves_between_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x")
    durable.rename_durable(tmp_path / "a" / "file", tmp_path / "b" / "file")
    assert (tmp_path / "b" / "file").read_bytes() == b"x"
    assert not (tmp_path / "a" / "file").exists()


def test_leftovers_of_interrupted_writes_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "kept").write_bytes(b"x")
    durable.temporary_path(tmp_path / "kept").write_bytes(b"half")
    durable.temporary_path(tmp_path / "folder").mkdir()
    assert durable.remove_temporaries(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_fsync_file_syncs_what_it_is_given(tmp_path, monkeypatch, by):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    with path.open("rb") as file:
        durable.fsync_file(path if by == "path" else file.fileno())
    assert synced == [path.stat().st_ino]


# -- removal -------------------------------------------------------------------------------------------------


def test_remove_tree_takes_files_folders_and_what_is_gone(tmp_path):
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_bytes(b"x")
    durable.remove_tree(folder)
    durable.remove_tree(folder)
    (tmp_path / "file").write_bytes(b"x")
    durable.remove_tree(tmp_path / "file")
    durable.remove_tree(tmp_path / "no folder" / "file")
    assert list(tmp_path.iterdir()) == []


def test_remove_tree_removes_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    durable.remove_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_removal_that_is_cut_never_leaves_half_a_folder_under_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"x")

    def cut(path):
        raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(durable.shutil, "rmtree", cut)
        with pytest.raises(PowerCutError):
            durable.remove_tree(folder)
    assert not folder.exists()
    assert durable.remove_temporaries(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


# -- sparse files --------------------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.fixture
def sparse(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(8 * MIB)
        file.write(b"a" * MIB)
        file.seek(32 * MIB)
        file.write(b"b" * 4096)
        os.fsync(file.fileno())
    return path


def ranges(path, start=0):
    with path.open("rb") as file:
        return list(durable.allocated_ranges(file.fileno(), path.stat().st_size, start))


def test_allocated_ranges_hold_all_data_and_leave_out_holes(sparse):
    found = ranges(sparse)
    assert found == [(8 * MIB, MIB), (32 * MIB, 4096)]
    assert ranges(sparse, 16 * MIB) == [(32 * MIB, 4096)]
    assert ranges(sparse, 33 * MIB) == []


def test_allocated_ranges_end_at_the_size_asked(sparse):
    with sparse.open("rb") as file:
        assert list(durable.allocated_ranges(file.fileno(), 8 * MIB + 4096)) == [(8 * MIB, 4096)]
        assert list(durable.allocated_ranges(file.fileno(), 4 * MIB)) == []


def test_punch_hole_reads_as_zeros_and_frees_space(sparse):
    with sparse.open("r+b") as file:
        durable.punch_hole(file.fileno(), 8 * MIB + 100, MIB - 100)
        durable.punch_hole(file.fileno(), 0, 0)
        os.fsync(file.fileno())
    data = sparse.read_bytes()
    assert data[8 * MIB : 9 * MIB] == b"a" * 100 + bytes(MIB - 100)
    assert len(data) == 64 * MIB
    assert sum(length for _, length in ranges(sparse)) <= 16384


def test_where_holes_are_unknown_zeros_are_written(sparse, monkeypatch):
    def unsupported(*args):
        durable.ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(durable._libc, "fallocate", unsupported, raising=False)
    with sparse.open("r+b") as file:
        durable.punch_hole(file.fileno(), 8 * MIB, MIB)
        durable.punch_hole(file.fileno(), 63 * MIB, 10 * MIB)
    data = sparse.read_bytes()
    assert not any(data[8 * MIB : 9 * MIB])
    assert len(data) == 64 * MIB


@pytest.mark.parametrize("in_kernel", [True, False])
def test_copy_sparse_copies_contents_and_holes(sparse, tmp_path, monkeypatch, in_kernel):
    if not in_kernel:

        def refuse(*args):
            raise OSError(errno.EXDEV, "not across file systems")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    copy = tmp_path / "copy"
    durable.copy_sparse(sparse, copy)
    assert copy.read_bytes() == sparse.read_bytes()
    assert ranges(copy) == ranges(sparse)


def test_copy_sparse_never_overwrites(sparse, tmp_path):
    copy = tmp_path / "copy"
    copy.write_bytes(b"mine")
    with pytest.raises(ConflictError):
        durable.copy_sparse(sparse, copy)
    assert copy.read_bytes() == b"mine"


def test_a_copy_that_runs_out_of_space_leaves_nothing(sparse, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(NoSpaceError):
        durable.copy_sparse(sparse, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# -- locks ---------------------------------------------------------------------------------------------------


def test_a_lock_excludes_another_and_names_its_owner(tmp_path):
    with FileLock(tmp_path / "lock") as lock:
        assert lock.held
        with pytest.raises(ConflictError) as caught:
            FileLock(tmp_path / "lock").acquire()
        assert f"process {os.getpid()} " in caught.value.hint
        with pytest.raises(ConflictError):
            lock.acquire()
    assert not lock.held
    with FileLock(tmp_path / "lock"):
        pass


def test_shared_locks_share_and_exclude_a_writer(tmp_path):
    path = tmp_path / "lock"
    with FileLock(path, shared=True), FileLock(path, shared=True), pytest.raises(ConflictError):
        FileLock(path).acquire()
    with FileLock(path), pytest.raises(ConflictError):
        FileLock(path, shared=True).acquire()


def test_a_bounded_wait_ends_with_an_error_that_may_be_retried(tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(UnavailableError) as caught:
        FileLock(tmp_path / "lock", timeout_s=0.01).acquire()
    assert caught.value.retry == "later"


def test_a_waiter_gets_the_lock_when_it_is_released(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock", timeout_s=30)
    first.acquire()
    waiter = threading.Thread(target=second.acquire)
    waiter.start()
    first.release()
    waiter.join(30)
    assert second.held
    second.release()


def test_a_lock_on_a_folder_that_was_removed_meanwhile_counts_for_nothing(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    real = durable.fcntl.flock

    def removed_before_the_lock(fd, how):
        monkeypatch.setattr(durable.fcntl, "flock", real)
        path.unlink()
        real(fd, how)

    monkeypatch.setattr(durable.fcntl, "flock", removed_before_the_lock)
    with FileLock(path, timeout_s=30) as lock:
        assert lock.held
        with pytest.raises(ConflictError):
            FileLock(path).acquire()


def test_a_lock_ends_with_its_process_also_when_that_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from secondsite.durable import FileLock;"
        "FileLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ConflictError) as caught:
            FileLock(path).acquire()
        assert f"process {process.pid} " in caught.value.hint
        process.kill()
        process.wait(30)
    with FileLock(path):
        pass


def test_new_folders_are_synced_by_name_from_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "fsync_dir", synced.append)
    durable.make_folders(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert (tmp_path / "a" / "b" / "c").is_dir()
    # Who made it may have died before its sync.
    durable.make_folders(tmp_path / "a" / "b" / "c")
    assert synced[3:] == [tmp_path / "a" / "b"]


def test_a_name_in_a_folder_that_we_may_not_read_is_left_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(durable, "fsync_dir", refused)
    durable.fsync_name(tmp_path / "a")
    with pytest.raises(PermissionError):
        durable.fsync_dir(tmp_path)
