"""A TCP relay that does to a connection what bad networks do: latency, loss, a thin line, silence, breaks, flipped bits. Real time, real sockets.

What each toxic means here, below TLS:

- `latency_s`: one way, each way; bytes travel side by side, so a round trip costs twice that, and throughput is not hurt.
- `loss`: TCP hides a lost segment, so it shows as what TCP makes of it: everything behind it waits for `RTO_S`, and every `RESETS_EACH`-th loss
  in a row of bad luck ends as a broken connection.
- `rate`: bytes a second, each way, for all connections together.
- `silent`: nothing passes any more, either way, and nobody is told (a peer that lost its power, a firewall that forgot). New connections are taken and
  stay silent.
- `away`: new connections are reset at once; `cut()` resets those that are there.
- `flip_at`: for each connection in turn, the number of a byte from the client of which one bit is flipped.

It counts: bytes up and down as they were sent on, connections, breaks.
"""

from __future__ import annotations

import queue
import random
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

RTO_S: Final = 0.2
"""What Linux waits at least before it sends a lost segment again."""
RESETS_EACH: Final = 40
SEGMENT: Final = 1448
_PIECE: Final = 16 << 10
_IN_FLIGHT: Final = 8
_BUFFER: Final = 16 << 10
_QUEUE_S: Final = 0.25
"""How much waits at the entry of a thin line; more is left with the sender."""
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset and drops what waits."""


@dataclass
class Toxics:
    """What the line does now; may be changed while it carries something."""

    latency_s: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    silent: bool = False
    away: bool = False


class ToxicLink:
    """Relays 127.0.0.1:`port` (a free one unless given) to `target`; a context manager."""

    def __init__(
        self, target: tuple[str, int], toxics: Toxics | None = None, *, seed: int = 0, port: int = 0
    ) -> None:
        self.toxics = toxics or Toxics()
        self.flip_at: list[int] = []
        self.up = 0
        self.down = 0
        self.connections = 0
        self.breaks = 0
        self.losses = 0
        self._target = target
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._ended = threading.Event()
        self._pairs: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._ends: dict[int, int] = {}
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        # As on a real line: loopback's own segments of 64 KiB would let the client's kernel take megabytes that the line has not carried.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in list(self._threads):
            thread.join(10)

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            pairs = list(self._pairs)
        for number in pairs:
            self._break(number)

    # -- inside ---------------------------------------------------------------------------------------------

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            if self.toxics.away:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _reset(client)
                continue
            flip = self.flip_at[number] if number < len(self.flip_at) else -1
            with self._lock:
                self._pairs[number] = (client, server)
            self._way(number, client, server, flip, upward=True)
            self._way(number, server, client, -1, upward=False)

    def _way(
        self, number: int, source: socket.socket, sink: socket.socket, flip: int, *, upward: bool
    ) -> None:
        pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=_IN_FLIGHT)
        self._start(self._take, number, source, pieces, flip)
        self._start(self._give, number, sink, pieces, upward)

    def _take(
        self, number: int, source: socket.socket, pieces: queue.Queue[tuple[float, bytes]], flip: int
    ) -> None:
        seen = 0
        late = 0.0
        while True:
            self._ended.wait(max(0.0, self._free_at - time.monotonic() - _QUEUE_S))
            try:
                data = source.recv(_PIECE if self.toxics.rate is None else SEGMENT)
            except OSError:
                data = b""
            if data and seen <= flip < seen + len(data):
                at = flip - seen
                data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            seen += len(data)
            arrives = max(late, self._after_the_line(len(data))) + self.toxics.latency_s
            lost = self._lost(len(data))
            if lost:
                arrives += RTO_S
                late = arrives - self.toxics.latency_s  # what comes behind waits for it
            if lost and self.losses % RESETS_EACH == 0:
                self._break(number)
            pieces.put((arrives, data))
            if not data:
                return

    def _give(
        self, number: int, sink: socket.socket, pieces: queue.Queue[tuple[float, bytes]], upward: bool
    ) -> None:
        open_ = True
        while True:
            arrives, data = pieces.get()
            if open_:
                self._ended.wait(max(0.0, arrives - time.monotonic()))
            if not data:
                break
            if self.toxics.silent or not open_:
                continue  # swallowed; the end of the connection still comes through here when it is cut
            try:
                sink.sendall(data)
            except OSError:
                open_ = False
                continue
            with self._lock:
                self.up, self.down = self.up + len(data) * upward, self.down + len(data) * (not upward)
        if not self.toxics.silent:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
        self._forget(number)

    def _after_the_line(self, count: int) -> float:
        """Return when the line has carried so many bytes more."""
        now = time.monotonic()
        rate = self.toxics.rate
        if rate is None:
            return now
        with self._lock:
            self._free_at = max(now, self._free_at) + count / rate
            return self._free_at

    def _lost(self, count: int) -> bool:
        loss = self.toxics.loss
        with self._lock:
            lost = sum(self._random.random() < loss for _ in range(-(-count // SEGMENT))) if loss else 0
            self.losses += lost
        return lost > 0

    def _break(self, number: int) -> None:
        with self._lock:
            pair = self._pairs.pop(number, None)
            self.breaks += pair is not None
        for end in pair or ():
            _reset(end)

    def _forget(self, number: int) -> None:
        """One way has ended; the connection goes when both have."""
        with self._lock:
            pair = self._pairs.get(number)
            if pair is None:
                return
            self._ends[number] = self._ends.get(number, 0) + 1
            if self._ends[number] < 2:
                return
            del self._pairs[number]
        for end in pair:
            end.close()


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with suppress(OSError):
        end.shutdown(socket.SHUT_RD)  # wakes who reads it
    end.close()
