"""Dirty bitmaps in QEMU's memory, for disks whose image cannot hold any (raw files, block devices), through its monitor.

They last as long as the QEMU process: after a restart they are missing, which is noticed (TrackingLostError), and the
disks are compared. They are never switched off: each records from its making to its removal, so what a bitmap marks is
everything that was written since, and perhaps more. That is why making one just before a backup job begins, and reading
an older one just after, needs no common transaction with the job: the job alone decides the instant, for all disks.

Reading goes through the job's own NBD server: a frozen copy of the bitmap is exported beside the disks for a moment.
QEMU calls a disk's node `libvirt-N-format`, with N the index in the running machine's XML. A snapshot or a copy job of
an administrator puts another node on top, which has no bitmap: tracking is lost, never misread.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import libvirt_qemu

from secondsite.capture.export import ExportDisk
from secondsite.capture.machine import MachineDisk, libvirt_errors
from secondsite.capture.port import is_ours
from secondsite.capture.runs import Runs
from secondsite.errors import SecondSiteError, TrackingLostError, UnavailableError

_FROZEN: Final = "ss-frozen-"
"""How the copy of a bitmap that is being read is called, and its export. What a dead process left `forget` removes."""


class LiveBitmaps:
    """The bitmaps of one running machine. Every call asks QEMU; nothing is remembered."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def add(self, disks: Collection[MachineDisk], name: str) -> None:
        """Begin to record, on all disks or none."""
        self._transaction(
            _action("block-dirty-bitmap-add", node=node_of(disk), name=name, persistent=False)
            for disk in disks
        )

    def require(self, disks: Collection[MachineDisk], name: str) -> None:
        """Raise TrackingLostError unless each disk has recorded under `name` without a break."""
        if not disks:
            return
        found = self._found()
        for disk in disks:
            bitmap = found.get(node_of(disk), {}).get(name)
            if bitmap is None or not bitmap["recording"] or bitmap.get("inconsistent"):
                raise TrackingLostError(
                    f"QEMU has no bitmap {name} of disk {disk.key}",
                    hint="the machine was restarted, or its disk was copied or snapshotted: the next cycle compares",
                    disk=disk.key,
                    checkpoint=name,
                )

    def marked(self, disk: MachineDisk, name: str, socket: Path) -> Runs:
        """Return the ranges in bytes that the bitmap marks, read through the NBD server that listens on `socket`."""
        node, frozen = node_of(disk), f"{_FROZEN}{secrets.token_hex(4)}"
        with ExitStack() as stack:
            self._transaction(
                (
                    _action(
                        "block-dirty-bitmap-add", node=node, name=frozen, persistent=False, disabled=True
                    ),
                    _action("block-dirty-bitmap-merge", node=node, target=frozen, bitmaps=[name]),
                )
            )
            stack.callback(self._quietly, "block-dirty-bitmap-remove", node=node, name=frozen)
            self._run(
                "block-export-add",
                **{
                    "type": "nbd",
                    "id": frozen,
                    "name": frozen,
                    "node-name": node,
                    "bitmaps": [frozen],
                },
            )
            stack.callback(self._quietly, "block-export-del", id=frozen, mode="hard")
            reader = ExportDisk(socket, frozen, bitmap=frozen)
            try:
                return reader.marked()
            finally:
                reader.finish()
                reader.close()

    def forget(self, keep: Collection[str]) -> None:
        """Remove all of ours but those in `keep`, on whatever node they are: also below a snapshot taken since."""
        for node, bitmaps in self._found().items():
            for name in bitmaps:
                if name not in keep and not bitmaps[name]["busy"]:
                    self._run("block-dirty-bitmap-remove", node=node, name=name)

    def forget_orphans(self) -> None:
        """Remove also those of ours that images hold and libvirt does not know: of a machine that was defined anew.

        All checkpoints of ours are gone already. What cannot be removed now (in an image that is only read) stays.
        """
        for node, bitmaps in self._found(persistent=True).items():
            for name in bitmaps:
                self._quietly("block-dirty-bitmap-remove", node=node, name=name)

    # -- the monitor -----------------------------------------------------------------------------------------

    def _found(self, *, persistent: bool = False) -> dict[str, dict[str, dict[str, Any]]]:
        """Return our bitmaps in memory, or those of images, by node and name."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for node in self._run("query-named-block-nodes", flat=True):
            for bitmap in node.get("dirty-bitmaps", ()):
                # A job's own bitmaps have no name.
                if is_ours(bitmap.get("name", "")) and bitmap.get("persistent", False) is persistent:
                    found.setdefault(node["node-name"], {})[bitmap["name"]] = bitmap
        return found

    def _transaction(self, actions: Iterable[dict[str, Any]]) -> None:
        listed = list(actions)
        if listed:
            self._run("transaction", actions=listed)

    def _quietly(self, command: str, **arguments: Any) -> None:
        with suppress(SecondSiteError):  # the next `forget` removes what is left
            self._run(command, **arguments)

    def _run(self, command: str, **arguments: Any) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        with libvirt_errors(f"QEMU does not take {command}"):
            answer = json.loads(libvirt_qemu.qemuMonitorCommand(self._domain, text, 0))
        if "error" in answer:
            raise UnavailableError(
                f"QEMU refuses {command}: {answer['error'].get('desc')}", qemu=answer["error"].get("class")
            )
        return answer["return"]


def node_of(disk: MachineDisk) -> str:
    """Return what QEMU calls the disk's active layer."""
    if disk.index is None:
        raise UnavailableError(f"libvirt does not say which node of QEMU is disk {disk.key}", disk=disk.key)
    return f"libvirt-{disk.index}-format"


def _action(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data}
