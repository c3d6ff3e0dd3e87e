"""Change tracking of a shut-off machine: the bitmaps in its qcow2 images, read through qemu-nbd.

A raw image holds no bitmap. Of raw files the checkpoint's name carries their marks (size, times), so that the next snapshot
knows that they were not written since; if they were, or might have been, it is a TrackingLostError. Of a block device no
such mark is worth anything: its snapshots have the checkpoint "", so they compare each time.

Nothing changes while a machine is off, so a snapshot makes no new checkpoint: `Snapshot.checkpoint` is the `since` that
it was given, whose bitmap goes on recording when the machine runs again; what it names once more is dropped by the
digest table. With `since=None` a bitmap `new` is added to every image and made known to libvirt first, so that the next
snapshot, running or not, is one of changes.

The images are opened without a lock (qemu's force-share), so that a start of the machine is never refused because of us.
Instead it is checked after every read that the machine is off and no image was written since before; otherwise
UnavailableError, and what was read is no point. Only adding a bitmap holds a lock, for some 20 ms.

A machine that is off here because it runs at another host is refused (elsewhere.py), before an image is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from secondsite.capture import raw_marks
from secondsite.capture.bitmaps import add_bitmap
from secondsite.capture.checkpoints import adopt_checkpoint, forget_checkpoints
from secondsite.capture.elsewhere import Elsewhere
from secondsite.capture.export import Checks, ExportDisk
from secondsite.capture.jobs import JOB_END_TIMEOUT_S
from secondsite.capture.layers import Layer, SharingServer, end_leftover_servers, layers_of, server_folder
from secondsite.capture.leftovers import end_leftovers
from secondsite.capture.machine import Machine, is_active, require_sectors
from secondsite.capture.port import Snapshot, SnapshotDisk, check_checkpoint_name
from secondsite.capture.runs import Runs, merge, no_runs
from secondsite.errors import ConflictError, TrackingLostError, UnavailableError
from secondsite.model.ids import DiskKey


def _now() -> datetime:
    return datetime.now(UTC)


class OfflineCapture:
    """`Capture` of a shut-off machine. See the module's docstring. `scratch`: a folder for sockets, ours alone."""

    def __init__(
        self,
        connection: Any,
        domain: str,
        disks: Collection[DiskKey],
        scratch: Path,
        *,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._machine = Machine(connection, domain, disks)
        self._scratch = scratch.absolute()
        self._elsewhere = Elsewhere(self._scratch)
        self._clock = clock

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        """See the port."""
        check_checkpoint_name(new)
        machine = self._machine
        domain = machine.domain()
        _require_off(machine, domain)
        found = machine.disks(domain)
        self._elsewhere.require_here(domain, found.values())
        paths = {key: disk.path for key, disk in found.items() if disk.keeps_bitmaps}
        plain = [disk for disk in found.values() if not disk.keeps_bitmaps]
        if since is None:
            checkpoint = raw_marks.checkpoint(new, plain)
            self._begin_tracking(paths, checkpoint or new)
        else:
            checkpoint = check_checkpoint_name(since)
        instant = self._clock()
        chains = {key: layers_of(disk.path, disk.format) for key, disk in found.items()}
        for disk in plain:
            require_sectors(disk.key, chains[disk.key][0].info.size)
        if since is not None:
            self._require_tracking({key: chains[key] for key in paths}, since)
            raw_marks.require(since, plain)
        definition = machine.definition(domain)

        def verify() -> None:
            _require_off(machine, domain)
            self._elsewhere.require_here(domain, found.values())
            if not all(layer.is_untouched() for layers in chains.values() for layer in layers):
                raise UnavailableError(f"{machine.name} was started while its disks were read")

        verify()
        end_leftover_servers(self._scratch)
        with ExitStack() as stack:
            disks: dict[DiskKey, SnapshotDisk] = {}
            folder = stack.enter_context(server_folder(self._scratch))
            for key, layers in chains.items():
                known = since if key in paths else None
                only = no_runs() if since is not None and known is None else None
                disks[key] = _open(stack, folder, key, layers, known, Checks(verify=verify), only)
            held = stack.pop_all()
        return Snapshot(instant, disks, definition, checkpoint, closer=held.close)

    def forget(self, keep: Collection[str]) -> None:
        """See the port. Bitmaps in images that another host uses stay there; libvirt here forgets them."""
        domain = self._machine.domain()
        here = self._elsewhere.is_here(domain, self._machine.present_disks(domain))
        forget_checkpoints(self._machine, keep, images=here)

    def tidy(self) -> None:
        """See the port. What a running machine's capture left is ended as well, and the machine may run again."""
        end_leftovers(self._machine, self._scratch, JOB_END_TIMEOUT_S)

    def _begin_tracking(self, paths: dict[DiskKey, Path], new: str) -> None:
        try:
            for path in paths.values():
                add_bitmap(path, new)
        except ConflictError as error:
            raise UnavailableError(f"{self._machine.name} was started: {error.message}") from error
        adopt_checkpoint(self._machine, new, self._clock)

    def _require_tracking(self, chains: dict[DiskKey, list[Layer]], since: str) -> None:
        for key, layers in chains.items():
            top, *below = layers
            broken = not top.info.is_tracking(since) or any(
                "in-use" in layer.info.bitmaps.get(since, ()) for layer in below
            )
            if broken:
                forget_checkpoints(self._machine, keep=())
                raise TrackingLostError(
                    f"the bitmap {since} of disk {key} is missing or broken", disk=key, checkpoint=since
                )


def _open(
    stack: ExitStack,
    folder: Path,
    key: DiskKey,
    layers: list[Layer],
    since: str | None,
    checks: Checks,
    only: Runs | None,
) -> ExportDisk:
    also: list[Runs] = []
    for number, layer in enumerate(layers[1:], 1):
        # A snapshot that an administrator took split the bitmap: what changed before it is recorded below.
        if since is not None and since in layer.info.bitmaps:
            with SharingServer(layer, folder / f"{key}-{number}", since) as server:
                disk = ExportDisk(server.socket, "", bitmap=since)
                also.append(disk.marked())
                disk.close()
    server = stack.enter_context(SharingServer(layers[0], folder / key, since))
    disk = ExportDisk(
        server.socket,
        "",
        bitmap=since,
        also=merge(np.concatenate(also)) if also else None,
        only=only,
        device=layers[0].info.path.is_block_device(),
        checks=checks,
    )
    stack.callback(disk.close)
    return disk


def _require_off(machine: Machine, domain: Any) -> None:
    if is_active(domain):
        raise UnavailableError(f"{machine.name} runs", hint="the next cycle captures it as a running machine")
