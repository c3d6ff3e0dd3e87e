"""The sending end of the data plane: parts to a listener, several at a time, over kept connections.

Promises:

- Before a part is sent the target is asked whether it is missing: nothing that arrived is sent again.
- A connection that breaks is retried a few times with jitter; what the target refuses (a stale epoch, a point out
  of sequence) never is. Every call may be repeated: the target's files are named by their content.
- Memory is bounded: about 3 MiB for each connection, whatever the parts' size.
- The limiter counts bytes of bodies on the wire; `cancelled` ends everything within half a second or one call.

It keeps nothing on disk and decides nothing about cycles: the node's replicator does (see backoff.CycleBackoff).
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from secondsite.errors import (
    InvalidInputError,
    RemoteError,
    Retry,
    SecondSiteError,
    UnavailableError,
)
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, parse_digest
from secondsite.model.units import MIB
from secondsite.ship.backoff import QuickRetries
from secondsite.ship.client import Endpoint, JsonClient, Trust
from secondsite.ship.compression import Compression, Sent
from secondsite.ship.delivery import Flow, Outgoing, Run, StoppedError
from secondsite.ship.progress import Progress
from secondsite.ship.protocol import (
    CELL_BYTES,
    CELLS_PER_CALL_MAX,
    DIGESTS_PATH,
    EPOCH_HEADER,
    INITIAL_PATH,
    ITEM_PATH,
    LENGTH_HEADER,
    MISSING_PATH,
    PART_FILE_MAX,
    PART_PATH,
    PARTS_PER_CALL_MAX,
    POINTS_PATH,
    CellRange,
    Encoding,
    PartKind,
    PartRef,
    ReplicaStatus,
    item_path,
)
from secondsite.ship.throttle import TokenBucket

_CHUNK: Final = MIB
_CALL_S: Final = 60.0
_APPLY_S: Final = 900.0
"""Folding parts and sealing sync files on the target; keep-alive probes notice a dead peer meanwhile."""
_CELLS_PER_FETCH: Final = min(CELLS_PER_CALL_MAX, 1 << 20)
_RANGES_PER_FETCH: Final = 4096
_BUFFERS_NO_MORE: Final = 16 * MIB
_QUICKLY_AGAIN: Final = frozenset({"unavailable", "timeout", "cut_body", "internal"})

T = TypeVar("T")

__all__ = ["Outgoing", "Sender", "StoppedError"]


class Sender:
    """Ships one item's parts and points to one target. Close it when done; its calls are for one thread at a time, but see `send`."""

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Trust,
        item: ItemId,
        epoch: Epoch,
        *,
        limiter: TokenBucket | None = None,
        compression: bool = True,
        connections: int = 2,
        cancelled: threading.Event | None = None,
        retries: QuickRetries | None = None,
        timeout_s: float = _CALL_S,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._client = JsonClient(endpoint, credentials, timeout_s=timeout_s)
        self._item = item
        self._epoch = epoch
        self._limiter = limiter or TokenBucket(None)
        self._compression = Compression(enabled=compression)
        self._connections = connections
        self._cancelled = cancelled or threading.Event()
        self._retries = retries or QuickRetries()
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._sleep = sleep or self._cancelled.wait
        self._uniform = uniform
        self._run: Run | None = None
        self.progress = Progress(monotonic=monotonic)

    # -- calls ----------------------------------------------------------------------------------------------

    def status(self) -> ReplicaStatus:
        """Return where the replica stands."""
        document = self._retrying(lambda: self._client.get(item_path(ITEM_PATH, self._item)))
        return _understood(lambda: ReplicaStatus.from_dict(document))

    def missing(self, parts: Sequence[PartRef]) -> set[Digest]:
        """Return the digests of those parts that the target does not have."""
        missing: set[Digest] = set()
        for start in range(0, len(parts), PARTS_PER_CALL_MAX):
            batch = parts[start : start + PARTS_PER_CALL_MAX]
            document = {
                "epoch": self._epoch,
                "parts": [{"digest": part.digest, "kind": PartKind(part.kind).value} for part in batch],
            }
            missing.update(_digests_in(self._post(MISSING_PATH, document).get("missing")))
        return missing

    def apply_initial(self, disk: DiskKey, digests: Sequence[Digest]) -> None:
        """Have received parts folded into the base of an item that has no point yet; durable on return."""
        for start in range(0, len(digests), PARTS_PER_CALL_MAX):
            batch = list(digests[start : start + PARTS_PER_CALL_MAX])
            self._post(
                INITIAL_PATH, {"epoch": self._epoch, "disk": disk, "digests": batch}, timeout_s=_APPLY_S
            )

    def seal(self, manifest: bytes) -> Digest:
        """Have the point of this manifest sealed; on return it can't be lost. May be repeated."""
        path = item_path(POINTS_PATH, self._item)
        headers = {EPOCH_HEADER: str(self._epoch), "Content-Type": "application/json"}

        def call() -> dict[str, Any]:
            return self._client.request(
                "POST", path, body=manifest, headers=headers, timeout_s=_APPLY_S
            ).json()

        document = self._retrying(call)
        return _understood(lambda: parse_digest(document.get("digest")))

    def digests(self, disk: DiskKey, ranges: Iterable[CellRange]) -> Iterator[bytes]:
        """Yield the target's cells for these ranges, in order: little-endian u64, in pieces of whole cells."""
        for batch in _batches(ranges):
            length = CELL_BYTES * sum(part.cells for part in batch)
            document = {"epoch": self._epoch, "disk": disk, "ranges": [list(part) for part in batch]}
            body = json.dumps(document).encode()
            data = self._retrying(lambda body=body: self._fetch(body))  # type: ignore[misc]
            if len(data) != length:
                raise UnavailableError(
                    "the target sent another number of digests", expected=length, got=len(data)
                )
            yield data

    def suggested_part_size(self) -> int:
        """Return how large parts should be on this link, so that a break costs little: 1 to 64 MiB."""
        return self._compression.suggested_part_size()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- parts ----------------------------------------------------------------------------------------------

    def send(
        self,
        parts: Iterable[Outgoing],
        on_sent: Callable[[Outgoing], object] | None = None,
        settle: Callable[[list[Outgoing]], object] | None = None,
    ) -> None:
        """Send the parts that are missing; on return all are acknowledged by the target.

        A list is asked about in one call, an iterator part by part, while it is still being produced: at most
        2 x connections parts are taken from it ahead; if it waits for room, it must watch `failing`. `on_sent` is called for each part once the target has it
        (also when it had it before), never twice at a time, in any order. The first error ends the transfer after
        the parts that are under way on other connections were given up; what arrived stays.

        `settle`, only with an iterator: called with the parts that have arrived, each once, a few at a time, in a thread of its own while others are
        produced and sent (`apply_initial` may be called in it). On return all are settled. Little piles up before it: while it is slow, nothing more is sent.
        """
        run = self._run = Run(on_sent, self._cancelled)
        if isinstance(parts, Sequence):
            self.progress.expect(self.progress.view().raw + sum(part.length for part in parts))
            missing = self.missing([PartRef(part.digest, part.kind) for part in parts]) if parts else set()
            for part in parts:
                if part.digest not in missing:
                    self.progress.add(raw=part.length)
                    run.sent(part)
            parts = [part for part in parts if part.digest in missing]
            ask = False
        else:
            ask = True
        run.through(parts, self._connections, lambda part: self._deliver(part, ask, run.stopping), settle)

    @property
    def failing(self) -> bool:
        """Whether the transfer has met an error, or was cancelled, and only waits for the producer to stop.

        A producer that waits for something that only progress can bring (room in the spool) must look at this:
        after an error nothing is sent any more.
        """
        return self._cancelled.is_set() or (self._run is not None and self._run.stopping())

    def _deliver(self, part: Outgoing, ask: bool, stopping: Callable[[], bool]) -> None:
        """Bring one part across, with retries; ask whether it is missing first, or after a break."""
        if not 0 < part.length <= PART_FILE_MAX:
            raise InvalidInputError("the part's length is out of range", length=part.length)
        first = True

        def attempt() -> None:
            nonlocal first
            if (ask or not first) and not self.missing_now(part):
                self.progress.add(raw=part.length)
                return
            first = False
            self._put(part, stopping)

        self._retrying(attempt, stopping)

    def missing_now(self, part: Outgoing) -> bool:
        """Ask for one part, without retries of its own."""
        document = {
            "epoch": self._epoch,
            "parts": [{"digest": part.digest, "kind": PartKind(part.kind).value}],
        }
        answer = self._client.post(item_path(MISSING_PATH, self._item), document)
        return part.digest in _digests_in(answer.get("missing"))

    def _put(self, part: Outgoing, stopping: Callable[[], bool]) -> None:
        level = self._compression.choose(part.length)
        flow = Flow(part, level, self._limiter, self._monotonic, self.progress, stopping)
        encoding = Encoding.ZSTD if level else Encoding.IDENTITY
        path = item_path(PART_PATH, self._item, part.digest) + f"?kind={PartKind(part.kind).value}"
        headers = {
            EPOCH_HEADER: str(self._epoch),
            LENGTH_HEADER: str(part.length),
            "Content-Encoding": encoding.value,
        }
        start = self._monotonic()
        length = None if level else part.length
        try:
            with self._client.exchange(
                "PUT", path, flow, length, headers, timeout_s=self._timeout_s
            ) as response:
                response.read()
        except BaseException:
            self.progress.add(raw=-flow.counted)
            raise
        # A large part shows the link's pace alone. A small one may still sit in the socket's buffer when its last
        # byte was sent, so there the time until the answer counts.
        end = flow.ended_at if flow.wire >= _BUFFERS_NO_MORE else self._monotonic()
        send_s = end - start - flow.own_s
        self._compression.observe(Sent(part.length, flow.wire, level, flow.own_s, send_s))

    # -- plumbing -------------------------------------------------------------------------------------------

    def _post(
        self, template: str, document: dict[str, Any], timeout_s: float | None = None
    ) -> dict[str, Any]:
        path = item_path(template, self._item)
        return self._retrying(lambda: self._client.post(path, document, timeout_s=timeout_s))

    def _fetch(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        path = item_path(DIGESTS_PATH, self._item)
        return self._client.request("POST", path, body=body, headers=headers, timeout_s=_APPLY_S).body

    def _retrying(self, call: Callable[[], T], stopping: Callable[[], bool] = lambda: False) -> T:
        end: float | None = None
        delays = self._retries.delays(self._uniform)
        while True:
            if stopping() or self._cancelled.is_set():
                raise StoppedError("the transfer was stopped")
            try:
                return call()
            except SecondSiteError as error:
                if not _worth_another_try(error):
                    raise
                now = self._monotonic()
                end = end or now + self._retries.total_s
                delay = next(delays, None)
                if delay is None or now + delay > end:
                    raise
            self._sleep(delay)


def _worth_another_try(error: SecondSiteError) -> bool:
    if isinstance(error, RemoteError):
        return error.retry is Retry.LATER and error.code in _QUICKLY_AGAIN
    return isinstance(error, UnavailableError)


def _batches(ranges: Iterable[CellRange]) -> Iterator[list[CellRange]]:
    """Cut ranges into calls of bounded size."""
    batch: list[CellRange] = []
    room = _CELLS_PER_FETCH
    for first, cells in ranges:
        start, left = first, cells
        while left:
            take = min(left, room)
            batch.append(CellRange(start, take))
            start, left, room = start + take, left - take, room - take
            if room == 0 or len(batch) == _RANGES_PER_FETCH:
                yield batch
                batch, room = [], _CELLS_PER_FETCH
    if batch:
        yield batch


def _digests_in(value: object) -> set[Digest]:
    return _understood(
        lambda: {parse_digest(digest) for digest in (value if isinstance(value, list) else [None])}
    )


def _understood(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except InvalidInputError as error:
        raise UnavailableError("the target's answer makes no sense", reason=error.message) from error
