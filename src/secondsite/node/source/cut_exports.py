"""Ends what exports left on this host's machines whose process died: the daemon's part of `secondsite node export`.

A backup job that nobody reads any more goes on copying what its guest overwrites, until the storage is full and QEMU
pauses the guest. So the daemon looks every few seconds for scratch folders of exports whose process is gone.

What it promises: an export that runs is left alone (it holds its lock); what cannot be ended now is tried again. What it
does not do: touch the medium.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from secondsite import durable
from secondsite.capture.port import Capture
from secondsite.errors import ConflictError, SecondSiteError
from secondsite.fabric.port import Fabric, VmInfo
from secondsite.model.ids import DiskKey
from secondsite.node.config import Folders
from secondsite.node.records import ItemStore
from secondsite.node.source.export import SCRATCH_PREFIX, Exporting, lock_of, scratch_of

LOOK_S: Final = 5.0

log = structlog.get_logger(__name__)


class CutExports:
    """See the module's docstring. `capture`: the capture of these disks of a machine, with this scratch folder."""

    def __init__(
        self,
        items: ItemStore,
        fabric: Fabric,
        folders: Folders,
        capture: Callable[[str, tuple[DiskKey, ...], Path], Capture],
    ) -> None:
        self._items = items
        self._fabric = fabric
        self._folders = folders
        self._capture = capture
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cut-exports", daemon=True)
        self._failed: set[Path] = set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """End what was left by now."""
        for scratch in sorted(self._folders.scratch.glob(f"{SCRATCH_PREFIX}*")):
            owner, marked, _ = scratch.name.partition(durable.TEMPORARY_MARK)
            try:
                with lock_of(self._folders, scratch.with_name(owner)):
                    if not marked:
                        self._end(scratch)
                    durable.remove_tree(scratch)
            except ConflictError:
                continue  # it runs
            except (SecondSiteError, OSError) as error:
                if scratch not in self._failed:  # once: it is tried for as long as it takes
                    self._failed.add(scratch)
                    log.warning("what an export left is not ended yet", error=str(error))
            else:
                self._failed.discard(scratch)

    def _end(self, scratch: Path) -> None:
        machine = self._machine(scratch)
        if machine is not None:
            log.warning("an export was cut: ending what it left", vm=machine.name)
            Exporting(
                machine, lambda: self._items, lambda disks: self._capture(machine.uuid, disks, scratch)
            ).tidy()

    def _machine(self, scratch: Path) -> VmInfo | None:
        for vm in self._fabric.inventory().vms:
            if scratch_of(self._folders, vm.uuid) == scratch:
                return vm
        return None

    def _loop(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("looking for cut exports broke")
            if self._stop.wait(LOOK_S):
                return
