"""A replica in memory that is fed by capture alone: what a node does in a cycle, without wire and journal."""

from __future__ import annotations

from pathlib import Path

from secondsite.blocks import DigestTable
from secondsite.capture.parts import Mode, Part, produce
from secondsite.capture.port import Capture
from secondsite.errors import TrackingLostError
from secondsite.hrl.reader import read_log
from secondsite.hrl.zeros import decode_zeros
from secondsite.model.ids import DiskKey

KEY = b"r" * 32


class Replica:
    """Images, digest tables and the last acknowledged checkpoint. `shipped` counts the last cycle's bytes per disk."""

    def __init__(self, disks: dict[DiskKey, int], folder: Path) -> None:
        self.images = {key: bytearray(size) for key, size in disks.items()}
        self.tables = {
            key: DigestTable.create(folder / f"{key}.tbl", size, KEY) for key, size in disks.items()
        }
        self.checkpoint: str | None = None
        self.shipped: dict[DiskKey, int] = {}
        self.compared = False
        self._spool = folder / "spool"
        self._spool.mkdir()
        self._cycles = 0

    def close(self) -> None:
        for table in self.tables.values():
            table.close()

    def cycle(self, capture: Capture, *, acknowledge: bool = True) -> None:
        """Replicate; after lost tracking by compare. Without `acknowledge` the cycle fails after all is read."""
        try:
            self._cycle(capture, self.checkpoint, acknowledge)
        except TrackingLostError:
            self.checkpoint = None
            self._cycle(capture, None, acknowledge)

    def _cycle(self, capture: Capture, since: str | None, acknowledge: bool) -> None:
        self._cycles += 1
        mode = Mode.COMPARE if since is None else Mode.CHANGED
        parts: list[Part] = []
        with capture.snapshot(since=since, new=f"ss-{self._cycles}-{id(self):x}") as snapshot:
            for key, disk in snapshot.disks.items():
                parts += produce(
                    disk, key, self.tables[key], mode, self._spool, digest_key=KEY, time=snapshot.time
                )
        if not acknowledge:
            return
        self.compared = since is None
        self.shipped = dict.fromkeys(self.images, 0)
        for part in parts:
            self._apply(part)
            part.pending.apply(self.tables[part.disk])
            self.shipped[part.disk] += part.changed
        self.checkpoint = snapshot.checkpoint
        capture.forget(keep={snapshot.checkpoint})

    def _apply(self, part: Part) -> None:
        data = part.path.read_bytes()
        part.path.unlink()
        image = self.images[part.disk]
        if part.kind == "zeros":
            for offset, length in decode_zeros(data).tolist():
                image[offset : offset + length] = bytes(length)
            return
        entries = read_log(lambda offset, length: data[offset : offset + length], len(data)).entries
        for offset, length, at in zip(
            entries.offset.tolist(), entries.length.tolist(), entries.location.tolist(), strict=True
        ):
            image[offset : offset + length] = data[at : at + length]
