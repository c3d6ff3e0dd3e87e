"""What is fuzzed of the view server: handshake and requests of one connection, as one stream of a client's bytes.

The socket is scripted (bytes in, bytes out, all in the calling thread), the server and the point that it serves are real. What a
scripted socket cannot show (threads, time-outs, one client beside another) is in tests/property/test_hostile_nbd.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from secondsite.journal import Journal
from secondsite.model.ids import DiskKey, Epoch
from secondsite.nbd import protocol as p
from secondsite.nbd.disk import ReadableDisk
from secondsite.nbd.server import NbdServer
from support.fuzz_loop import MIB, Finding, Target
from support.journals import ITEM, KEY, Model
from support.nbd_wire import contexts, go, option, request
from support.path_watch import paths_within

HUGE: Final = 1 << 40
"""Size of the thin disk that is served: promises of gigabytes are within its bounds."""
_KEPT: Final = 4 * MIB


class ScriptedSocket:
    """A connection whose client has sent `data` and closed its end. What the server sends is counted, and its first bytes are kept."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.sent = bytearray()
        self.count = 0
        self.closed = False

    def setsockopt(self, *_: object) -> None:
        """Take any option."""

    def settimeout(self, seconds: float | None) -> None:
        if seconds is not None and seconds <= 0:
            raise Finding(f"a time-out of {seconds} s")

    def recv(self, count: int) -> bytes:
        buffer = bytearray(count)  # as the real one does, whatever comes
        got = self.recv_into(memoryview(buffer))
        return bytes(memoryview(buffer)[:got])

    def recv_into(self, buffer: memoryview) -> int:
        if not len(buffer):
            raise Finding("asks for nothing, and would take the answer for the end")
        got = min(len(buffer), len(self._data))
        buffer[:got] = self._data[:got]
        self._data = self._data[got:]
        return got

    def sendall(self, data: bytes) -> None:
        self._keep(data)

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        for piece in pieces:
            self._keep(piece)
        return sum(map(len, pieces))

    def close(self) -> None:
        self.closed = True

    def _keep(self, data: bytes | memoryview) -> None:
        self.count += len(data)
        self.sent += data[: max(0, _KEPT - len(self.sent))]


@contextmanager
def nbd_target(folder: Path) -> Iterator[Target]:
    """A point with a small disk and one of a terabyte, behind the server."""
    model = Model({DiskKey("vda"): 64 << 10, DiskKey("vdb"): (22 << 10) + 512})
    journal = model.create(folder / "journal")
    model.replicate_initially(
        journal, {DiskKey("vda"): [(0, b"A" * 16384)], DiskKey("vdb"): [(512, b"B" * 512)]}
    )
    model.seal(journal, {})
    model.seal(journal, {DiskKey("vda"): [(4096, b"C" * 8192), (32768, 4096)]})
    thin = Journal.create(
        folder / "thin", item=ITEM, name="thin", epoch=Epoch(1), key=KEY, disks={DiskKey("vdz"): HUGE}
    )
    big = Model({DiskKey("vdz"): HUGE // 2**20})  # never filled: only its manifest's form is used
    big.sizes = {DiskKey("vdz"): HUGE}
    thin.seal(Epoch(1), big.manifest({}).to_bytes())
    with journal, thin, journal.view(purpose="fuzz") as view, thin.view(purpose="fuzz") as thin_view:
        exports: dict[str, ReadableDisk] = {
            str(key): disk for found in (view, thin_view) for key, disk in found.disks.items()
        }
        server = NbdServer(exports, folder / "never-bound")
        yield Target(
            "nbd",
            ("nbd", "journal/view.py", "hrl/lookup.py"),
            list(_seeds()),
            lambda data: _serve(server, folder, data),
            [
                *(option(number) for number in range(1, 12)),
                *(request(kind, 1, 0, 512) for kind in range(8)),
                go("vda"),
                go("vdz", p.INFO_NAME),
                b"vda",
                b"vdz",
                b"base:allocation",
                b"../../etc/passwd",
                struct.pack(">Q", HUGE),
            ],
            steps_max=1_500_000,
            memory_max=128 * MIB,
        )


def _seeds() -> Iterator[bytes]:
    hello = p.U32.pack(3)
    structured = option(p.OPT_STRUCTURED_REPLY)
    allocation = option(p.OPT_SET_META_CONTEXT, contexts("vdz", p.BASE_ALLOCATION))
    reads = b"".join(request(p.CMD_READ, n, 4096 * n, 1024) for n in range(3)) + request(
        p.CMD_READ, 9, 0, 32 << 20, p.CMD_FLAG_DF
    )
    others = b"".join(request(kind, kind, 0, 65536) for kind in (3, 4, 5, 6, 7))
    leave = request(p.CMD_DISC, 99)
    yield hello + structured + allocation + option(p.OPT_GO, go("vdz", p.INFO_NAME)) + reads + others + leave
    yield hello + option(p.OPT_GO, go("vda")) + reads + request(p.CMD_WRITE, 5, 0, 512) + bytes(512) + leave
    yield hello + option(p.OPT_LIST) + option(p.OPT_INFO, go("vdb")) + option(p.OPT_ABORT)
    yield hello + option(p.OPT_LIST_META_CONTEXT, contexts("vda")) + option(p.OPT_EXPORT_NAME, b"vda") + reads
    yield p.U32.pack(1) + option(p.OPT_STARTTLS) + option(p.OPT_EXPORT_NAME, b"vdz") + others
    yield hello + structured + option(p.OPT_GO, go("")) + leave


def _serve(server: NbdServer, folder: Path, data: bytes) -> None:
    connection: Any = ScriptedSocket(data)
    with paths_within(folder) as outside:
        server._serve(connection)
    if outside:
        raise Finding(f"outside of the journal: {outside[:3]}")
    if not connection.closed:
        raise Finding("the connection was left open")
    if not bytes(connection.sent).startswith(b"NBDMAGICIHAVEOPT\x00\x03"):
        raise Finding("no greeting")
