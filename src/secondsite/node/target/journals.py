"""The journals that this node keeps, opened once each for writing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from secondsite.errors import NotFoundError
from secondsite.journal import Journal, finish_deletes
from secondsite.journal.base import OpenBase
from secondsite.model.ids import ItemId


class Journals:
    """Opens a journal when it is first asked for and keeps it open: a journal has one writer. Thread-safe."""

    def __init__(self, folder: Callable[[ItemId], Path], open_base: OpenBase) -> None:
        self._folder = folder
        self._open_base = open_base
        self._lock = threading.Lock()
        self._locks: dict[ItemId, threading.Lock] = {}
        self._open: dict[ItemId, Journal] = {}

    def get(self, item: ItemId) -> Journal:
        """Return the item's journal; NotFoundError if there is none."""
        # A lock of its own for each: opening one may finish a fold, and nobody else's points wait for that.
        with self._lock_of(item):
            journal = self._open.get(item)
            if journal is None:
                path = self._folder(item)
                if not (path / "journal.json").exists():
                    raise NotFoundError(f"there is no journal of {item} here", item=item)
                journal = self._open[item] = Journal.open(path, writable=True, open_base=self._open_base)
            return journal

    def exists(self, item: ItemId) -> bool:
        """Whether the item has a journal here."""
        return (self._folder(item) / "journal.json").exists()

    def delete(self, item: ItemId, *, remove_images: bool) -> None:
        """Delete the item's journal. Idempotent, and finishes one that a crash cut."""
        if not self.exists(item):
            finish_deletes(self._folder(item).parent, name=item)
            return
        journal = self.get(item)
        with self._lock_of(item):
            journal.delete(remove_images=remove_images)  # refused while somebody reads: then it stays open
            self._open.pop(item, None)

    def _lock_of(self, item: ItemId) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(item, threading.Lock())

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for journal in self._open.values():
                journal.close()
            self._open.clear()
