"""Files that survive a power cut: atomic writes, syncs, locks, sparse copies.

Every file operation of the data plane whose order matters goes through this module, so that a test can stand in
for it and cut the power between any two of them.

What it promises: when a function returns, its effect is on the disk, name included; when it is interrupted, the old
state or the new one is there, beside at most a leftover whose name contains TEMPORARY_MARK.
What it does not do: it keeps no state and decides nothing about retries.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from secondsite.errors import ConflictError, NoSpaceError, UnavailableError
from secondsite.model.units import Buffer

TEMPORARY_MARK: Final = ".tmp-"
"""A name with this in it is a leftover of an interrupted write and may be removed by the folder's owner."""

_COPY_CHUNK: Final = 8 << 20
_LOCK_POLL_S: Final = 0.05
_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_SYNC_FILE_RANGE_WRITE: Final = 0x02
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_HERE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.sync_file_range.restype = ctypes.c_int


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space" and "over quota" of the enclosed calls into NoSpaceError; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpaceError(
                f"no space left to write {path.name}",
                hint="free space on this file system, or give the storage more",
                path=str(path),
            ) from error
        raise


# -- names and contents ------------------------------------------------------------------------------------


def temporary_path(path: Path) -> Path:
    """Return a fresh name beside `path` for a file that will be renamed to it."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{secrets.token_hex(6)}")


def remove_temporaries(folder: Path) -> int:
    """Remove what interrupted writes left in `folder` (not below it); return how many. Only its one writer may call."""
    count = 0
    for entry in folder.iterdir():
        if TEMPORARY_MARK in entry.name:
            remove_tree(entry)
            count += 1
    return count


def write_atomic(path: Path, data: Buffer, *, mode: int = 0o600) -> None:
    """Replace the contents of `path`: readers see the old bytes or the new ones, never a mix.

    Raises:
        NoSpaceError: the old contents are untouched.
    """
    temporary = temporary_path(path)
    with naming_full_disk(path):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.fchmod(fd, mode)
                view = memoryview(data).cast("B")
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            rename_durable(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise


def rename_durable(source: Path, target: Path) -> None:
    """Rename over `target` and sync the folders. The caller has synced the contents."""
    source.replace(target)
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)


def fsync_file(file: Path | int) -> None:
    """Sync a file's contents and size, by path or by descriptor."""
    if isinstance(file, int):
        os.fsync(file)
        return
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def begin_writing(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a range to the disk, so that a later sync has less to wait for.

    A hint: it makes nothing durable, takes no error away from that sync, and where it is not known nothing happens.
    """
    _libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def fsync_dir(path: Path) -> None:
    """Sync a folder, which makes the names in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing, with their names. What is there is no error."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_name(folder)


def fsync_name(path: Path) -> None:
    """Make durable a name that is there: who gave it may have died before its sync.

    Where we may not look into the folder above, somebody else gave the name, and nothing is done.
    """
    with suppress(PermissionError):
        fsync_dir(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all below it. What is gone already is no error, so a retry is safe."""
    if path.is_dir() and not path.is_symlink():
        # A folder first loses its name, so that a cut leaves a leftover with the mark, never half a tree.
        doomed = path if TEMPORARY_MARK in path.name else temporary_path(path)
        if doomed != path:
            rename_durable(path, doomed)
        else:
            fsync_name(path)  # or half a tree could be back under the old name
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        fsync_dir(path.parent)


# -- sparse files ------------------------------------------------------------------------------------------


def allocated_ranges(fd: int, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what the file system holds for [start, size); the gaps read as zeros.

    A range may still hold zeros. Moves the descriptor's position.
    """
    offset = start
    while offset < size:
        try:
            data = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only holes from here on
                return
            raise
        if data >= size:
            return
        offset = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        yield data, offset - data


def write_again(fd: int, size: int) -> None:
    """Have a file written again, as it reads now; for after a sync that failed. Not durable until the file is synced.

    The kernel drops what it could not write, goes on showing it as the file's contents, and tells of the error once: a
    retry that writes only what differs would write nothing, and its sync would say yes.
    """
    for offset, length in allocated_ranges(fd, size):
        at, end = offset, offset + length
        while at < end:
            at += os.pwrite(fd, os.pread(fd, min(_COPY_CHUNK, end - at), at), at)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make [offset, offset + length) read as zeros and give its space back; the file's size stays.

    Where the file system knows no holes, zeros are written. Not durable until the file is synced.
    """
    if length <= 0:
        return
    end = min(offset + length, os.fstat(fd).st_size)
    if _libc.fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length) == 0:
        return
    number = ctypes.get_errno()
    if number not in {errno.EOPNOTSUPP, errno.ENOSYS}:
        raise OSError(number, os.strerror(number))
    zeros = bytes(min(length, _COPY_CHUNK))
    while offset < end:
        offset += os.pwrite(fd, zeros[: end - offset], offset)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy contents and holes into a new file and sync it; the caller syncs the folder or renames.

    Raises:
        ConflictError: `target` exists.
        NoSpaceError: the incomplete target was removed.
    """
    with source.open("rb") as reader, naming_full_disk(target):
        try:
            writer = target.open("xb", buffering=0)
        except FileExistsError as error:
            raise ConflictError(f"{target.name} exists already", path=str(target)) from error
        try:
            with writer:
                size = os.fstat(reader.fileno()).st_size
                os.ftruncate(writer.fileno(), size)
                for offset, length in allocated_ranges(reader.fileno(), size):
                    _copy_range(reader.fileno(), writer.fileno(), offset, length)
                os.fsync(writer.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _copy_range(source: int, target: int, offset: int, length: int) -> None:
    in_kernel = True  # copy_file_range shares blocks where the file system can
    while length > 0:
        copied = 0
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, length, offset, offset)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
            in_kernel = copied > 0
        if copied == 0:
            data = os.pread(source, min(length, _COPY_CHUNK), offset)
            if not data:  # the source shrank meanwhile; the rest reads as zeros
                return
            copied = os.pwrite(target, data, offset)
        offset += copied
        length -= copied


# -- locks -------------------------------------------------------------------------------------------------


class FileLock:
    """An advisory lock (flock) on a file of its own; it ends with the process, however that ends.

    The file stays behind and holds the process id of the last exclusive owner, for the message only.
    """

    def __init__(self, path: Path, *, shared: bool = False, timeout_s: float = 0.0) -> None:
        self.path = path
        self._shared = shared
        self._timeout_s = timeout_s
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock, waiting at most the timeout given.

        Raises:
            ConflictError: it is taken, and no wait was asked for (or this object holds it already).
            UnavailableError: it is still taken after the wait.
        """
        if self._fd is not None:
            raise ConflictError(f"{self.path.name} is locked by this object already", path=str(self.path))
        deadline = time.monotonic() + self._timeout_s
        while not self._try():
            if self._timeout_s <= 0:
                raise ConflictError(*self._refusal(), hint=self._hint(), path=str(self.path))
            if time.monotonic() >= deadline:
                raise UnavailableError(*self._refusal(), hint=self._hint(), path=str(self.path))
            time.sleep(_LOCK_POLL_S)

    def release(self) -> None:
        """Give the lock up; nothing happens if it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self) -> bool:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # The folder may have been removed between open and flock: a lock on a nameless file excludes nobody.
            named = os.path.samestat(os.fstat(fd), self.path.stat())
        except (BlockingIOError, FileNotFoundError):
            named = False
        except BaseException:
            os.close(fd)
            raise
        if not named:
            os.close(fd)
            return False
        try:
            if not self._shared:
                with suppress(OSError):  # a full disk: the number is for the message only
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def _refusal(self) -> tuple[str]:
        return (f"{self.path.name} is in use by another process",)

    def _hint(self) -> str:
        try:
            owner = self.path.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            owner = ""
        who = f"process {owner} took it last; " if owner.isdigit() else ""
        return f"{who}end the other use, or wait until it has ended, and try again"
