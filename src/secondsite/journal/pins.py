"""Pins: who reads what, so that nothing is folded, thinned or unlinked beneath a reader.

What it promises: whoever holds a pin finds the point's files where they are until the pin is given up or, for a process pin,
the process ends. The common lock orders readers that pin and a writer that removes: the writer sees each pin, or the
reader sees what was removed. What it does not do: it does not know the points; the fold and the others ask it.

Three kinds: process pins (a file whose flock is the sign of life), lasting pins (a file alone), and, where the folder
cannot be written, the common lock held in shared mode. See docs/design/journal.md.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blake3 import blake3

from secondsite import durable
from secondsite.errors import ConflictError, PinnedError, UnavailableError
from secondsite.model.ids import Sequence

_POLL_S: Final = 0.02
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin. `files`: names in `logs/` that must stay; `still_base`: no fold at all meanwhile."""

    sequence: Sequence
    owner: str
    lasting: bool
    files: frozenset[str] = field(default_factory=frozenset)
    still_base: bool = False


class HeldPin:
    """A process pin, or the shared common lock in its stead; `release` gives it up."""

    def __init__(self, fd: int, path: Path | None) -> None:
        self._fd = fd
        self._path = path

    def release(self) -> None:
        """Give the pin up; a second call does nothing."""
        if self._fd >= 0:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


class PinStore:
    """The folder `pins`. `patience_s` bounds the wait for the common lock."""

    def __init__(self, folder: Path, *, patience_s: float = 30.0) -> None:
        self.folder = folder
        self.patience_s = patience_s
        self._lock_path = folder / "lock"

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Hold the common lock shared: nothing is removed within. Yields what takes process pins.

        Raises:
            UnavailableError: maintenance holds the lock for longer than the patience.
        """
        fd = self._take(fcntl.LOCK_SH)
        if fd is None:
            raise UnavailableError(
                "the journal is being maintained", hint="try again in a moment", path=str(self._lock_path)
            )
        reading = Reading(self.folder, fd)
        try:
            yield reading
        finally:
            reading.end()

    @contextmanager
    def removing(self) -> Iterator[list[Pin]]:
        """Hold the common lock alone and yield all pins: none appears within.

        Raises:
            PinnedError: a reader that cannot write pins holds the lock for longer than the patience.
        """
        fd = self._take(fcntl.LOCK_EX)
        if fd is None:
            raise PinnedError(
                "a reader holds the whole journal", hint="wait until it has ended", path=str(self._lock_path)
            )
        try:
            yield self.all()
        finally:
            os.close(fd)

    def add_lasting(self, sequence: Sequence, owner: str) -> None:
        """Pin a point until `remove_lasting`, durably. The caller holds the common lock and knows that it exists."""
        text = json.dumps({"kind": "lasting", "owner": owner, "sequence": sequence})
        durable.write_atomic(self.folder / f"{_lasting_prefix(owner)}{sequence}.json", text.encode())

    def remove_lasting(self, owner: str) -> int:
        """Remove all lasting pins of `owner`, durably; return how many. None is no error."""
        found = list(self.folder.glob(f"{_lasting_prefix(owner)}*.json"))
        for path in found:
            path.unlink(missing_ok=True)
        # Also without any: who removed them may have died before this, and they would come back.
        durable.fsync_dir(self.folder)
        return len(found)

    def all(self) -> list[Pin]:
        """Return the live pins, and remove those of processes that ended."""
        pins: list[Pin] = []
        for path in sorted(self.folder.glob("*.json")):
            if path.name.startswith("view-") and not _is_live(path):
                path.unlink(missing_ok=True)
                continue
            try:
                pins.append(_parse(path.read_bytes(), path))
            except FileNotFoundError:  # released since we listed
                continue
        return pins

    def _take(self, mode: int) -> int | None:
        deadline = time.monotonic() + self.patience_s
        try:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if mode != fcntl.LOCK_SH or error.errno not in _READ_ONLY:
                raise
            fd = os.open(self._lock_path, os.O_RDONLY | os.O_CLOEXEC)
        while True:
            try:
                fcntl.flock(fd, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return None
                time.sleep(_POLL_S)
            else:
                return fd


class Reading:
    """The common lock, held shared; see `PinStore.reading`."""

    def __init__(self, folder: Path, fd: int) -> None:
        self._folder = folder
        self._fd = fd

    def pin(self, sequence: Sequence, owner: str, files: Collection[str], *, still_base: bool) -> HeldPin:
        """Take a process pin, or keep this lock where none can be written."""
        path = self._folder / f"view-{secrets.token_hex(8)}.json"
        document = {
            "kind": "view",
            "owner": owner,
            "sequence": sequence,
            "files": sorted(files),
            "still_base": still_base,
        }
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            held, self._fd = self._fd, -1
            return HeldPin(held, None)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = memoryview(json.dumps(document).encode())
            with durable.naming_full_disk(path):
                while data:
                    data = data[os.write(fd, data) :]
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise
        return HeldPin(fd, path)

    def end(self) -> None:
        """Give the lock up, unless a pin took it over."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_live(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _parse(data: bytes, path: Path) -> Pin:
    try:
        document = json.loads(data)
        files = document.get("files", [])
        return Pin(
            sequence=Sequence(int(str(document["sequence"]))),
            owner=str(document["owner"]),
            lasting=document["kind"] == "lasting",
            files=frozenset(str(name) for name in files) if isinstance(files, list) else frozenset(),
            still_base=bool(document.get("still_base", False)),
        )
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConflictError(
            f"the pin {path.name} cannot be read",
            hint="remove the file if nothing reads this journal",
            path=str(path),
        ) from error


def _lasting_prefix(owner: str) -> str:
    return f"lasting-{blake3(owner.encode()).hexdigest()[:16]}-"
