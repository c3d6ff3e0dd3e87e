"""The immutable files of the journal: receive them, prove them, index them, read them, unlink them.

A file is a log of changed data (`hrl`) or a list of zero extents (`zeros`), named by the BLAKE3 of its bytes.

What it promises: a name in `logs/` always had complete, synced, well-formed contents when it got that name; one in `parts/` the same, but for the sync. Indexes are
parsed once and kept as long as memory for them is set aside. What it does not do: it does not know which points name a file.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias

from blake3 import blake3

from secondsite import durable
from secondsite.errors import ConflictError, CorruptError
from secondsite.journal.base import read_exactly
from secondsite.model.ids import Digest, parse_digest
from secondsite.model.manifest import DiskPoint, FileRef
from secondsite.model.units import MIB, Buffer

if TYPE_CHECKING:
    from secondsite.hrl.index import ExtentIndex
    from secondsite.hrl.reader import Log

FileKind: TypeAlias = Literal["hrl", "zeros"]
"""What a file of the journal is; also the end of its name."""

_HASH_CHUNK: Final = 4 * MIB
_CACHED_EXTENTS_MAX: Final = 4 << 20  # 32 bytes each: 128 MiB
_OPEN_FILES_MAX: Final = 192


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the journal: what the manifest says, and which kind it is."""

    ref: FileRef
    kind: FileKind

    @property
    def name(self) -> str:
        """The file's name in `logs/`."""
        return f"{self.ref.digest}.{self.kind}"


def files_of(disk: DiskPoint) -> list[StoredFile]:
    """Return the files that a point names for a disk."""
    files = [StoredFile(log, "hrl") for log in disk.logs]
    if disk.zeros is not None:
        files.append(StoredFile(disk.zeros, "zeros"))
    return files


class LogStore:
    """The folders `logs` and `incoming`. Thread-safe. `sizes` are those of the journal's disks.

    passing: the folder is one of files that are only on their way into a base, so none is synced; it is made when it is needed.
    """

    def __init__(
        self, folder: Path, incoming: Path, sizes: Collection[int], *, passing: bool = False
    ) -> None:
        self.folder = folder
        self._passing = passing
        self._incoming = incoming
        self.sizes = frozenset(sizes)
        self._indexes = _IndexCache()

    def path(self, file: StoredFile) -> Path:
        """Return where the file lies."""
        return self.folder / file.name

    def length(self, digest: Digest, kind: FileKind) -> int | None:
        """Return the length of a file that is here, or None."""
        try:
            # Not a Path's: thousands are asked for while a machine waits, and making one takes longer than the call.
            return os.stat(f"{self.folder}/{parse_digest(digest)}.{kind}").st_size  # noqa: PTH116
        except FileNotFoundError:
            return None

    def receive(
        self, digest: Digest, kind: FileKind, accepted: Callable[[Digest, FileKind], None]
    ) -> Incoming:
        """Begin to take a file in. `accepted` is called before it gets its name."""
        return Incoming(self, self._incoming, digest, kind, accepted)

    def adopt(
        self, temporary: Path, digest: Digest, kind: FileKind, *, made_for: int | None = None
    ) -> StoredFile:
        """Give a complete, closed file its name, durably, after its contents were found well-formed.

        A disk may have grown, so one of a larger size is taken; the point that names it must be of that size. Of a log that
        merges points from before it grew, the size is `made_for`.

        Raises:
            CorruptError: not a log or list of zeros for a disk of ours. The file stays where it is.
        """
        length = temporary.stat().st_size
        index, size = _parse(temporary, kind, length)
        if size is not None and size not in {made_for, *self.sizes} and size < min(self.sizes):
            raise CorruptError(f"the log was made for a disk of {size} bytes, which is none of this item's")
        if len(index) and size is not None and int(index.end[-1]) > size:
            raise CorruptError("the file names ranges beyond the end of the disk")
        stored = StoredFile(FileRef(digest, length), kind)
        with durable.naming_full_disk(temporary):
            if self._passing:
                self.folder.mkdir(exist_ok=True)
                temporary.replace(self.path(stored))
            else:
                durable.fsync_file(temporary)
                durable.rename_durable(temporary, self.path(stored))
        self._indexes.put(stored.name, index, size)
        return stored

    def least_size(self, file: StoredFile) -> int:
        """Return how large the file's disk is at least: a log says for which size it was made, of zeros it is where the last ones end."""
        found = self._indexes.get(file.name)
        if found is None:
            self.check_presence(file)
            found = _parse(self.path(file), file.kind, file.ref.length)
            self._indexes.put(file.name, *found)
        index, size = found
        if size is not None:
            return size
        return int(index.end[-1]) if len(index) else 0

    def index(self, file: StoredFile, disk_size: int, source: int) -> ExtentIndex:
        """Return where the file's data are, as source number `source`.

        Raises:
            CorruptError: the file is missing, has another length, was made for another size, or is malformed.
        """
        found = self._indexes.get(file.name)
        if found is None:
            self.check_presence(file)
            found = _parse(self.path(file), file.kind, file.ref.length)
            self._indexes.put(file.name, *found)
        index, size = found
        if size is not None and size != disk_size:
            raise self._corrupt(file, f"it was made for a disk of {size} bytes, not {disk_size}")
        if len(index) and int(index.end[-1]) > disk_size:
            raise self._corrupt(file, "it names ranges beyond the end of the disk")
        if file.kind == "zeros" or source == 0:
            return index
        return index.as_source(source)

    def check_presence(self, file: StoredFile) -> None:
        """Raise CorruptError unless the file is here with the length that its point says."""
        length = self.length(file.ref.digest, file.kind)
        if length is None:
            raise self._corrupt(file, "it is missing")
        if length != file.ref.length:
            raise self._corrupt(file, f"it has {length} bytes instead of {file.ref.length}")

    def check_contents(self, file: StoredFile, progress: Callable[[int], None] = lambda _: None) -> None:
        """Read the whole file and raise CorruptError unless it has the bytes that it is named by."""
        self.check_presence(file)
        hasher = blake3()
        with self.path(file).open("rb", buffering=0) as stream:
            while chunk := stream.read(_HASH_CHUNK):
                hasher.update(chunk)
                progress(len(chunk))
        if hasher.hexdigest() != file.ref.digest:
            raise self._corrupt(file, "its contents do not match its digest")

    def proven(self, file: StoredFile) -> memoryview:
        """Return the file's bytes, mapped, after they were compared with the digest."""
        self.check_presence(file)
        with self.path(file).open("rb") as stream:
            # Not closed here but with its last reference: the slices of an exception's frames may outlive us.
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        if blake3(view).hexdigest() != file.ref.digest:
            raise self._corrupt(file, "its contents do not match its digest")
        return view

    def names(self) -> list[str]:
        """Return the names of all files, in no order."""
        with os.scandir(self.folder) as entries:
            return [entry.name for entry in entries]

    def unlink(self, name: str) -> int:
        """Unlink a file, not yet durably; return the bytes given back. A missing one is no error."""
        path = self.folder / name
        try:
            length = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        self._indexes.drop(name)
        return length

    def persist(self) -> None:
        """Make all names durable."""
        durable.fsync_dir(self.folder)

    def remove_older(self, seconds: float) -> None:
        """Remove logs that have been here for longer. Lists of zeros stay: they are small, and wait for all logs of a cycle."""
        newest = time.time() - seconds
        for path in self.folder.glob("*.hrl"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < newest:
                    self.unlink(path.name)

    def remove(self) -> None:
        """Remove the folder with all that is in it; without one nothing happens."""
        if self.folder.exists():
            durable.remove_tree(self.folder)

    def _corrupt(self, file: StoredFile, reason: str) -> CorruptError:
        return CorruptError(
            f"file {file.name} is damaged: {reason}",
            hint="points that need it cannot be used; resynchronize, or send the file again",
            path=str(self.path(file)),
            digest=file.ref.digest,
        )


class Incoming:
    """A file on its way in. A context manager: what was not committed is removed."""

    def __init__(
        self,
        store: LogStore,
        folder: Path,
        digest: Digest,
        kind: FileKind,
        accepted: Callable[[Digest, FileKind], None],
    ) -> None:
        self.digest = parse_digest(digest)
        self.kind: FileKind = kind
        self._store = store
        self._accepted = accepted
        self._hasher = blake3()
        self._path = durable.temporary_path(folder / f"{self.digest}.{kind}")
        with durable.naming_full_disk(self._path):
            self._file = self._path.open("xb", buffering=0)
            os.fchmod(self._file.fileno(), 0o600)
        self._committed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._committed:
            self._path.unlink(missing_ok=True)

    def write(self, data: Buffer) -> None:
        """Append bytes.

        Raises:
            NoSpaceError: nothing of the file will remain.
        """
        self._hasher.update(data)
        view = memoryview(data).cast("B")
        with durable.naming_full_disk(self._path):
            while view:
                view = view[self._file.write(view) :]

    def commit(self) -> None:
        """Check what arrived and make it part of the journal, durably.

        Raises:
            CorruptError: other bytes than the digest says, or no well-formed log for a disk of this item.
        """
        if self._committed:
            raise ConflictError("the file was committed already")
        if self._hasher.hexdigest() != self.digest:
            raise CorruptError(
                "the bytes that arrived are not those that were announced",
                hint="send the part again",
                digest=self.digest,
            )
        self._file.close()
        self._accepted(self.digest, self.kind)  # before it has a name, so that no garbage collection takes it
        self._store.adopt(self._path, self.digest, self.kind)
        self._committed = True


class OpenFiles:
    """Descriptors of files for reading, the most recently used ones kept open. Thread-safe.

    The files are pinned by whoever reads them, so one that was closed here can be opened again.
    """

    def __init__(self, limit: int = _OPEN_FILES_MAX) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, _Descriptor] = OrderedDict()

    def readinto(self, path: Path, offset: int, buffer: memoryview) -> None:
        """Fill all of `buffer`; a file that is missing or too short is CorruptError."""
        descriptor = self._get(path)
        read_exactly(descriptor.fd, offset, buffer, path)

    def close(self) -> None:
        """Drop all; a read that is under way ends undisturbed."""
        with self._lock:
            self._open.clear()

    def _get(self, path: Path) -> _Descriptor:
        with self._lock:
            descriptor = self._open.get(path)
            if descriptor is not None:
                self._open.move_to_end(path)
                return descriptor
            try:
                descriptor = _Descriptor(path)
            except FileNotFoundError as error:
                raise CorruptError(f"file {path.name} is missing", path=str(path)) from error
            self._open[path] = descriptor
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
            return descriptor


class _Descriptor:
    """Closes with its last reference, so an evicted file stays readable for the thread that reads it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class _IndexCache:
    """Parsed indexes (source 0) and disk sizes by file name; the least recently used go first."""

    def __init__(self, limit: int = _CACHED_EXTENTS_MAX) -> None:
        self._limit = limit
        self._extents = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[ExtentIndex, int | None]] = OrderedDict()

    def get(self, name: str) -> tuple[ExtentIndex, int | None] | None:
        with self._lock:
            found = self._entries.get(name)
            if found is not None:
                self._entries.move_to_end(name)
            return found

    def put(self, name: str, index: ExtentIndex, size: int | None) -> None:
        with self._lock:
            self._forget(name)
            self._entries[name] = (index, size)
            self._extents += len(index)
            while self._extents > self._limit:
                self._forget(next(iter(self._entries)))

    def drop(self, name: str) -> None:
        with self._lock:
            self._forget(name)

    def _forget(self, name: str) -> None:
        found = self._entries.pop(name, None)
        if found is not None:
            self._extents -= len(found[0])


def parse_log(path: Path, length: int) -> Log:
    """Parse a log file. Raises CorruptError."""
    from secondsite.hrl.reader import read_log  # with numpy: a view that was prepared parses nothing

    with path.open("rb", buffering=0) as stream:
        fd = stream.fileno()
        return read_log(lambda offset, size: os.pread(fd, size, offset), length)


def _parse(path: Path, kind: FileKind, length: int) -> tuple[ExtentIndex, int | None]:
    from secondsite.hrl.index import ExtentIndex  # as above
    from secondsite.hrl.zeros import decode_zeros

    try:
        if kind == "zeros":
            return ExtentIndex.from_zeros(decode_zeros(path.read_bytes())), None
        log = parse_log(path, length)
    except FileNotFoundError as error:
        raise CorruptError(f"file {path.name} is missing", path=str(path)) from error
    return ExtentIndex.from_log(log, 0), log.header.current_size
