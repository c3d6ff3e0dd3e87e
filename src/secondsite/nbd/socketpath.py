"""Unix sockets whose path is longer than the 107 bytes that the kernel takes.

A socket's folder can also be named through /proc: as an open folder's descriptor in our own process, as the
working folder in a child. Both work for any depth of folders, leave nothing behind and cannot be redirected by
anyone else, which a short symbolic link in /tmp could.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SOCKET_PATH_MAX: Final = 107
"""sun_path holds 108 bytes with the final zero."""


def fits(path: Path) -> bool:
    """Return whether programs that know nothing of us can connect to `path`."""
    return len(os.fsencode(path)) <= SOCKET_PATH_MAX


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """Give a name of `path` that is short enough, for this process and inside the `with` only."""
    if fits(path):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def name_for_child(path: Path) -> str:
    """Return a name of `path` for a child whose working folder is the socket's folder."""
    return str(path) if fits(path) else f"/proc/self/cwd/{path.name}"


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connected stream socket, or raise OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with reachable(path) as name:
            connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection
