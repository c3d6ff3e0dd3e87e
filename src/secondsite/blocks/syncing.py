"""A sync whose yes is true after an error, too.

The kernel drops what it could not write, goes on showing it as the file's contents, and tells of the error once. Who then writes only
what differs writes nothing, and the next sync says yes. So after an error the file is written again as it reads, and until that
was done each sync begins with it: also another one of this process that has opened the file anew, as owners do for each of their
steps. What it does not do: a process that ends in between takes the note with it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from typing import Final

from secondsite import durable

_UNWRITTEN: Final[set[tuple[int, int]]] = set()
"""Device and inode of the files that are to be written again. One too many (an inode that was used again) costs a writing."""


def sync(fd: int, length: int, changing: AbstractContextManager[object]) -> None:
    """Make the file durable. Its first `length` bytes are written again if a sync failed, under the lock `changing`: what is set
    meanwhile must not be undone.

    Raises:
        OSError: nothing is taken for written; the same changes may be made again.
    """
    status = os.fstat(fd)
    file = status.st_dev, status.st_ino
    if file in _UNWRITTEN:
        _write_again(fd, length, changing, file)
    try:
        durable.fsync_file(fd)
    except OSError:
        _UNWRITTEN.add(file)
        with suppress(OSError):  # it is noted, so the next sync begins with it
            _write_again(fd, length, changing, file)
        raise


def _write_again(
    fd: int, length: int, changing: AbstractContextManager[object], file: tuple[int, int]
) -> None:
    with changing:
        durable.write_again(fd, length)
    _UNWRITTEN.discard(file)
