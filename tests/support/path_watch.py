"""Watches which paths a process touches, by Python's own audit events: nothing outside of a folder may be opened, made, renamed or removed.

Events, not a wrapper: what numpy's, mmap's or pathlib's code opens through Python is seen as well. What it does not see: `stat`, and what other processes do.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_EVENTS: Final = frozenset({"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
                            "os.truncate", "os.chmod", "os.utime", "shutil.rmtree"})  # fmt: skip
_OWN: Final = tuple(
    {
        *sysconfig.get_paths().values(),
        *(path for path in sys.path if path),
        "/proc/",
        "/dev/urandom",
        "/dev/null",
    }
)
"""Where the interpreter itself reads: modules, source lines for traces, its process's facts."""


class _Watch(threading.local):
    outside: list[str] | None = None
    folder = ""


_watch = _Watch()
_hooked = threading.Lock()
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS or _watch.outside is None:
        return
    paths = arguments[:1] if event == "open" else arguments[:2]  # an open's second one is its mode
    for argument in paths:
        if isinstance(argument, str | bytes | os.PathLike) and argument not in {"", b""}:
            path = os.path.normpath(os.path.abspath(os.fsdecode(argument)))  # noqa: PTH100 - raw, as the event has it
            if not f"{path}/".startswith(f"{_watch.folder}/") and not path.startswith(_OWN):
                _watch.outside.append(f"{event} {path}")


@contextmanager
def paths_within(folder: Path) -> Iterator[list[str]]:
    """Yield a list that fills with every path outside of `folder` that this thread touches within."""
    with _hooked:
        if not _installed:
            sys.addaudithook(_hook)  # for the life of the process; silent outside of a `with`
            _installed.append(True)
    before = (_watch.outside, _watch.folder)
    found: list[str] = []
    _watch.outside, _watch.folder = found, os.path.normpath(folder)
    try:
        yield found
    finally:
        _watch.outside, _watch.folder = before
