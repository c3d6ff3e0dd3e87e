"""The inside of a transfer: how one part flows onto the wire, and how many flow at once. See `sender`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

import zstandard

from secondsite.errors import CorruptError, Retry, SecondSiteError
from secondsite.model.ids import Digest
from secondsite.model.units import MIB
from secondsite.ship.progress import Progress
from secondsite.ship.protocol import PartKind
from secondsite.ship.throttle import TokenBucket

_CHUNK: Final = MIB
_ARRIVED_AHEAD: Final = 4
"""So many parts that arrived wait to be settled, beside those that are being settled; then no more are sent."""
BATCH_MAX: Final = 4
"""At most so many parts are settled together."""


class StoppedError(SecondSiteError):
    """The transfer was cancelled from this side; what arrived stays and is not sent again."""

    code = "stopped"
    retry = Retry.LATER


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A part to send: `length` bytes in the file at `path`, whose BLAKE3 is `digest`."""

    digest: Digest
    kind: PartKind
    path: Path
    length: int


class Flow:
    """The body of one part: read, compress, throttle, piece by piece, and what that cost."""

    def __init__(
        self,
        part: Outgoing,
        level: int,
        limiter: TokenBucket,
        monotonic: Callable[[], float],
        progress: Progress,
        stopping: Callable[[], bool],
    ) -> None:
        self._part = part
        self._level = level
        self._limiter = limiter
        self._monotonic = monotonic
        self._progress = progress
        self._stopping = stopping
        self.wire = 0
        self.counted = 0
        self.ended_at = 0.0
        self.own_s = 0.0
        """Seconds spent on reading and compressing; the rest of the call's time is the link's."""

    def __iter__(self) -> Iterator[bytes | memoryview]:
        pieces = self._compressed() if self._level else self._read()
        while True:
            start = self._monotonic()
            piece = next(pieces, None)
            self.own_s += self._monotonic() - start
            if piece is None:
                self.ended_at = self._monotonic()
                return
            yield from self._throttled(piece)

    def _throttled(self, piece: bytes | memoryview) -> Iterator[bytes | memoryview]:
        view = memoryview(piece)
        while view:
            step = view[: self._limiter.piece]
            if not self._limiter.take(len(step), self._stopping):
                raise StoppedError("the transfer was stopped")
            yield step
            self.wire += len(step)
            self._progress.add(wire=len(step))
            view = view[len(step) :]

    def _read(self) -> Iterator[memoryview]:
        """Yield the file piece by piece; each is valid until the next is taken."""
        left = self._part.length
        buffer = memoryview(bytearray(min(_CHUNK, left)))  # fresh ones would be cleared and mapped each time
        with _opened(self._part.path) as file:
            while left:
                if self._stopping():
                    raise StoppedError("the transfer was stopped")
                data = _read_some(file, buffer[: min(_CHUNK, left)])
                if not data:
                    raise CorruptError(
                        "the part's file is shorter than it should be",
                        path=str(self._part.path),
                        missing=left,
                    )
                left -= len(data)
                yield data
                self.counted += len(data)
                self._progress.add(raw=len(data))

    def _compressed(self) -> Iterator[bytes]:
        compressor = zstandard.ZstdCompressor(level=self._level).compressobj(size=self._part.length)
        for data in self._read():
            if piece := compressor.compress(data):
                yield piece
        yield compressor.flush()


def _opened(path: Path) -> FileIO:
    # Our own files' errors must not look like the link's, which are retried.
    try:
        return FileIO(path)
    except OSError as error:
        raise CorruptError("the part's file cannot be opened", path=str(path), reason=str(error)) from error


def _read_some(file: FileIO, view: memoryview) -> memoryview:
    try:
        return view[: file.readinto(view)]
    except OSError as error:
        raise CorruptError(
            "the part's file cannot be read", path=str(file.name), reason=str(error)
        ) from error


class Run:
    """One transfer: a feeder (the caller), workers, and the first error, which stops them all."""

    def __init__(self, on_sent: Callable[[Outgoing], object] | None, cancelled: threading.Event) -> None:
        self._on_sent = on_sent
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def stopping(self) -> bool:
        return self._error is not None or self._cancelled.is_set()

    def sent(self, part: Outgoing) -> None:
        if self._on_sent is not None:
            with self._lock:
                self._on_sent(part)

    def through(
        self,
        parts: Iterable[Outgoing],
        workers: int,
        deliver: Callable[[Outgoing], None],
        settle: Callable[[list[Outgoing]], object] | None = None,
    ) -> None:
        """Deliver all parts with so many workers, and have `settle` take what arrived; raise the first error once all have ended.

        `parts`, if it is a generator, has been closed when this returns or raises.
        """
        if settle is None:
            self._through(parts, workers, deliver, lambda _: None)
        else:
            arrived: queue.Queue[Outgoing | None] = queue.Queue(maxsize=_ARRIVED_AHEAD)
            settler = threading.Thread(
                target=lambda: self._settle(arrived, settle), name="ship-settle", daemon=True
            )
            settler.start()
            try:
                self._through(parts, workers, deliver, arrived.put)
            finally:
                arrived.put(None)
                settler.join()
        if self._error is not None:
            raise self._error

    def _through(
        self,
        parts: Iterable[Outgoing],
        workers: int,
        deliver: Callable[[Outgoing], None],
        arrived: Callable[[Outgoing], None],
    ) -> None:
        waiting: queue.Queue[Outgoing | None] = queue.Queue(maxsize=2 * workers)

        def work() -> None:
            while (part := waiting.get()) is not None:
                if self._error is not None:
                    continue
                try:
                    deliver(part)
                    self.sent(part)
                    arrived(part)
                except BaseException as error:  # noqa: BLE001 - carried to the caller, whatever it is
                    self._fail(error)

        threads: list[threading.Thread] = []
        try:
            for part in parts:
                if len(threads) < workers:
                    thread = threading.Thread(target=work, name="ship-send", daemon=True)
                    thread.start()  # first: one that could not start is not waited for
                    threads.append(thread)
                waiting.put(part)
                if self.stopping():
                    self._fail(StoppedError("the transfer was stopped"))  # unless there was an error before
                    break
        except BaseException as error:  # noqa: BLE001 - the producer failed: same way out
            self._fail(error)
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()
        try:
            _close(parts)
        except BaseException as error:  # noqa: BLE001 - like any other error of the producer
            self._fail(error)

    def _settle(
        self, arrived: queue.Queue[Outgoing | None], settle: Callable[[list[Outgoing]], object]
    ) -> None:
        """Settle in batches of what has arrived meanwhile, so that what a batch costs is paid less often when it is dear.

        Lists of zeros wait until all logs are settled: only a log tells the target that a disk has grown.
        """
        zeros: list[Outgoing] = []
        part: Outgoing | None = None
        more = True
        while more:
            batch: list[Outgoing] = []
            while (part := arrived.get()) is not None:
                (zeros if part.kind is PartKind.ZEROS else batch).append(part)
                if arrived.empty() or len(batch) == BATCH_MAX:
                    break
            more = part is not None
            self._settled(batch, settle)
        for start in range(0, len(zeros), BATCH_MAX):
            self._settled(zeros[start : start + BATCH_MAX], settle)

    def _settled(self, batch: list[Outgoing], settle: Callable[[list[Outgoing]], object]) -> None:
        if not batch or self._error is not None:
            return
        try:
            settle(batch)
        except BaseException as error:  # noqa: BLE001 - carried to the caller, whatever it is
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error


def _close(parts: Iterable[Outgoing]) -> None:
    """End a producer that was left in the middle: the error's traceback would keep it there, with its reads under way, for
    longer than its snapshot is open, and what libnbd may still fill can never be used again.
    """
    close = getattr(parts, "close", None)
    if close is not None:
        close()
