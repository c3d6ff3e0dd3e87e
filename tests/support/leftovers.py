"""Finds processes that tests left behind: by a mark in their environment, or by a folder of the tests in their arguments.

The mark is inherited by whatever a test starts; libvirtd and its guests, which get an environment of their own, are
known by the folder. Each pytest-xdist worker has a mark of its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from secondsite.lab import processes
from secondsite.lab.processes import Process

_VARIABLE = "SECONDSITE_TESTS"
_folders: list[str] = []


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder below /tmp, deleted at the end; others may enter it (guests may run as another user)."""
    folder = Path(tempfile.mkdtemp(prefix="ss-", dir="/tmp"))
    folder.chmod(0o755)
    _folders.append(str(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Leftovers:
    """Marks this process, so that its later children can be recognised."""

    def __init__(self, *, patience_s: float = 2.0, folders: Sequence[str] = _folders) -> None:
        self._folders = folders
        self._patience_s = patience_s
        self._mark = f"{_VARIABLE}={secrets.token_hex(8)}"
        os.environ[_VARIABLE] = self._mark.partition("=")[2]

    def end_and_describe(self) -> list[str]:
        """Give late ones a little time, end what still runs, and return a line about each."""
        late = processes.wait_until_gone(self._find(), self._patience_s)
        lines = [f"  {process.pid}: {' '.join(process.command_line)[:200]}" for process in late]
        processes.end(late, grace_s=1.0)
        return lines

    def _find(self) -> list[Process]:
        return [process for process in processes.all_processes() if self._is_ours(process)]

    def _is_ours(self, process: Process) -> bool:
        if process.pid == os.getpid():
            return False
        if self._mark in process.environment:
            return True
        return any(f"{folder}/" in argument for folder in self._folders for argument in process.command_line)
