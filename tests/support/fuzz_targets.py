"""All targets by name, each with what it needs around it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from support.fuzz_files import documents_target, journal_target, log_target, manifest_target, zeros_target
from support.fuzz_loop import Target
from support.fuzz_nbd import nbd_target
from support.fuzz_ship import ship_target

Maker = Callable[[Path], AbstractContextManager[Target]]


def _plain(make: Callable[[], Target]) -> Maker:
    @contextmanager
    def making(_folder: Path) -> Iterator[Target]:
        yield make()

    return making


def _in_a_folder(make: Callable[[Path], Target]) -> Maker:
    @contextmanager
    def making(folder: Path) -> Iterator[Target]:
        yield make(folder)

    return making


TARGETS: Final[Mapping[str, Maker]] = {
    "log": _plain(log_target),
    "zeros": _plain(zeros_target),
    "manifest": _plain(manifest_target),
    "documents": _in_a_folder(documents_target),
    "journal": _in_a_folder(journal_target),
    "nbd": nbd_target,
    "ship": ship_target,
}


def made(name: str, folder: Path) -> AbstractContextManager[Target]:
    """Return the target; `folder` is its own and empty."""
    return TARGETS[name](folder)


@contextmanager
def in_memory() -> Iterator[Path]:
    """Yield a folder on a file system in memory where there is one: targets make and remove many small files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="ss-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    ) as folder:
        yield Path(folder)
