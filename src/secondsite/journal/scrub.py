"""The scrub: compares everything in a journal with its digests, and names what is damaged.

What it promises: a flipped bit in any file that a point needs is found, and named by point, disk and offset as far as
they are known; a sound journal yields nothing, also while it is written, folded and read. What it does not do: it repairs
nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from secondsite import durable
from secondsite.blocks import UNKNOWN, block_digests
from secondsite.errors import ConflictError, CorruptError, NotFoundError, SecondSiteError
from secondsite.hrl.format import checksum
from secondsite.journal import documents
from secondsite.journal.apply import read, touched_blocks
from secondsite.journal.base import OpenBase, open_raw_base
from secondsite.journal.documents import BaseState
from secondsite.journal.logs import FileKind, StoredFile, files_of, parse_log
from secondsite.journal.points import Chain
from secondsite.journal.proof import BaseProof
from secondsite.journal.store import Doubtful, Store, points_after
from secondsite.model.ids import Digest, DiskKey, Sequence
from secondsite.model.manifest import FileRef
from secondsite.model.units import BLOCK, MIB

_CHUNK: Final = 4 * MIB

ScrubProgress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to be done."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One damage. `point` None: not of one point. `offset`: in bytes on the disk, if known."""

    point: Sequence | None
    disk: DiskKey | None
    offset: int | None
    what: str

    def to_dict(self) -> dict[str, Any]:
        return {"point": self.point, "disk": self.disk, "offset": self.offset, "what": self.what}


def verify_folder(
    path: Path,
    open_base: OpenBase = open_raw_base,
    progress: ScrubProgress = lambda _done, _total: None,
) -> Iterator[Finding]:
    """Scrub a journal that may be too damaged to open.

    Raises:
        NotFoundError: there is no journal at `path`.
    """
    if not path.is_dir():
        raise NotFoundError(f"there is no journal in {path}", hint="give an item's folder", path=str(path))
    try:
        identity = documents.load_identity(path / "journal.json")
    except (CorruptError, NotFoundError) as error:
        yield Finding(None, None, None, error.message)
        return
    yield from scrub(Store(path.absolute(), identity, open_base), progress, is_writer=False)


def scrub(store: Store, progress: ScrubProgress, *, is_writer: bool) -> Iterator[Finding]:
    """Yield what is damaged. Holds a pin that forbids folds; takes the writer's lock for the base of an
    unfinished initial replication, which is skipped while somebody writes it."""
    with ExitStack() as stack:
        with store.pins.reading() as reading:
            findings, state, chain = _read_documents(store)
            names = [file.name for file, _, _ in _named(chain)]
            pin = reading.pin(
                chain.offered[0].sequence if chain.offered else Sequence(1), "verify", names, still_base=True
            )
        stack.callback(pin.release)
        yield from findings
        yield from _check_points(store, chain)
        count = _Count(progress, _total(store))
        yield from _check_files(store, chain, count)
        if state is None:
            return
        if state.sequence is None and not is_writer:
            lock = durable.FileLock(store.folder / "lock")
            try:
                stack.enter_context(lock)
            except (ConflictError, OSError):  # being written: its base changes as we look
                return
        for disk in store.identity.disks:
            yield from _check_base(store, disk, state, chain, count)


# -- documents and points ----------------------------------------------------------------------------------


def _read_documents(store: Store) -> tuple[list[Finding], BaseState | None, Chain]:
    findings: list[Finding] = []
    state: BaseState | None = None
    chain = Chain((), Sequence(0), None, ())
    try:
        state, chain = store.chain()
    except (CorruptError, NotFoundError) as error:
        findings.append(Finding(None, None, None, error.message))
    try:
        epoch = store.epoch()
        last = chain.last
        if last is not None and last.manifest.epoch > epoch:
            findings.append(
                Finding(last.sequence, None, None, f"the point's epoch is newer than the journal's {epoch}")
            )
    except (CorruptError, NotFoundError) as error:
        findings.append(Finding(None, None, None, error.message))
    return findings, state, chain


def _check_points(store: Store, chain: Chain) -> Iterator[Finding]:
    damaged: set[int] = set()
    for sequence in store.points.sequences():
        try:
            store.points.read_uncached(sequence)
        except CorruptError as error:
            damaged.add(sequence)
            yield Finding(sequence, None, None, error.message)
        except NotFoundError:  # folded or thinned since we listed
            continue
    if chain.damage is not None and chain.damage.attributes.get("point") not in damaged:
        yield Finding(
            Sequence(int(chain.damage.attributes.get("point", 0))), None, None, chain.damage.message
        )


# -- files -------------------------------------------------------------------------------------------------


def _named(chain: Chain) -> list[tuple[StoredFile, Sequence, DiskKey]]:
    """Return the files that points need, in order: those of all points behind the base's."""
    return [
        (file, point.sequence, disk)
        for point in chain.points[1:]
        for disk, content in point.manifest.disks.items()
        for file in files_of(content)
    ]


def _check_files(store: Store, chain: Chain, count: _Count) -> Iterator[Finding]:
    users: dict[str, list[tuple[Sequence | None, DiskKey | None]]] = {}
    for file, sequence, disk in _named(chain):
        users.setdefault(file.name, []).append((sequence, disk))
        try:
            store.logs.check_presence(file)
        except CorruptError as error:
            yield Finding(sequence, disk, None, error.message)
    for name in sorted(store.logs.names()):
        if durable.TEMPORARY_MARK in name:
            continue
        stored = _stored(store, name)
        if stored is None:
            yield Finding(None, None, None, f"logs/{name} is no file of a journal")
            continue
        try:
            store.logs.check_contents(stored, count.add)
        except FileNotFoundError:  # garbage that was collected
            continue
        except CorruptError as error:
            if name not in users and not store.logs.path(stored).exists():
                continue
            for needed_by, on_disk in users.get(name) or [(None, None)]:
                for offset, where in _narrow(store, stored):
                    yield Finding(needed_by, on_disk, offset, f"{error.message} ({where})")


def _stored(store: Store, name: str) -> StoredFile | None:
    digest, _, kind = name.partition(".")
    file_kind: FileKind
    if kind == "hrl":
        file_kind = "hrl"
    elif kind == "zeros":
        file_kind = "zeros"
    else:
        return None
    try:
        length = store.logs.length(Digest(digest), file_kind)
    except SecondSiteError:  # no digest
        return None
    return StoredFile(FileRef(Digest(digest), length or 0), file_kind)


def _narrow(store: Store, file: StoredFile) -> list[tuple[int | None, str]]:
    """Return the offsets on the disk of the entries whose own checksum is wrong, as far as a log tells."""
    path = store.logs.path(file)
    if file.kind == "zeros":
        return [(None, "a list of zeros")]
    try:
        entries = parse_log(path, file.ref.length).entries
    except SecondSiteError as error:
        return [(None, error.message)]
    found: list[tuple[int | None, str]] = []
    with path.open("rb") as stream:
        for offset, length, location, expected in zip(
            entries.offset.tolist(),
            entries.length.tolist(),
            entries.location.tolist(),
            entries.data_checksum.tolist(),
            strict=True,
        ):
            stream.seek(location)
            if expected and checksum(stream.read(length)) != expected:
                found.append((offset, f"{length} bytes of data from there on are wrong"))
    return found or [(None, "its data are as they were written; header, metadata or order are wrong")]


# -- bases -------------------------------------------------------------------------------------------------


def _check_base(
    store: Store, disk: DiskKey, state: BaseState, chain: Chain, count: _Count
) -> Iterator[Finding]:
    with ExitStack() as stack:
        try:
            skip = _in_flux(store, disk, state, chain)
            base = store.open_base(disk, writable=False)
            stack.callback(base.close)
            table = stack.enter_context(store.open_table(disk, writable=False))
        except SecondSiteError as error:
            yield Finding(state.sequence, disk, None, error.message)
            return
        proof = BaseProof(base, table, store.key, skip)
        wrong: tuple[int, int, str] | None = None
        checked = 0  # two extents may share a block
        for start, length in proof.data_extents(0, min(base.size, table.disk_size)):
            end = -(-(start + length) // BLOCK)
            for at in range(max(start // BLOCK, checked), end, _CHUNK // BLOCK):
                blocks = min(_CHUNK // BLOCK, end - at)
                data = read(base, at, blocks)
                found, cells = block_digests(data, store.key), table.get(at, blocks)
                bad = found != cells
                if state.sequence is not None:
                    bad |= cells == UNKNOWN
                else:
                    bad &= cells != UNKNOWN  # of a part that is under way; the first seal looks again
                for block in (np.flatnonzero(bad) + at).tolist():
                    if block in skip:
                        continue
                    what = _describe(int(found[block - at]), int(cells[block - at]))
                    if wrong is not None and wrong[1] == block and wrong[2] == what:
                        wrong = (wrong[0], block + 1, what)
                        continue
                    if wrong is not None:
                        yield _base_finding(state, disk, wrong)
                    wrong = (block, block + 1, what)
                count.add(len(data))
            checked = end
        if wrong is not None:
            yield _base_finding(state, disk, wrong)


def _in_flux(store: Store, disk: DiskKey, state: BaseState, chain: Chain) -> Doubtful:
    """Return the blocks that an unfinished fold writes (the logs that shadow them are proven by themselves), and the one
    at the old end of a disk that grows.
    """
    if state.folding_to is None or state.sequence is None:
        return store.doubtful(disk)
    index, _ = store.merged_index(points_after(chain, state.sequence, state.folding_to), disk)
    touched = touched_blocks(index).tolist()
    return store.doubtful(disk, (block for first, last in touched for block in range(first, last)))


def _describe(found: int, cell: int) -> str:
    if cell == UNKNOWN:
        return "the digest table has no digest"
    if cell == 0:
        return "data where the digest table has zeros"
    if found == 0:
        return "zeros where the digest table has data"
    return "data differ from the digest table"


def _base_finding(state: BaseState, disk: DiskKey, wrong: tuple[int, int, str]) -> Finding:
    first, last, what = wrong
    return Finding(state.sequence, disk, first * BLOCK, f"base: {what} ({(last - first) * BLOCK} bytes)")


class _Count:
    def __init__(self, progress: ScrubProgress, total: int) -> None:
        self._progress = progress
        self._done = 0
        self._total = total
        progress(0, total)

    def add(self, done: int) -> None:
        self._done += done
        self._progress(self._done, max(self._total, self._done))


def _total(store: Store) -> int:
    """Return about how many bytes will be read."""
    total = 0
    for name in store.logs.names():
        try:
            total += (store.logs.folder / name).stat().st_size
        except FileNotFoundError:
            continue
    for disk in store.identity.disks:
        try:
            base = store.open_base(disk, writable=False)
        except SecondSiteError:
            continue
        try:
            total += sum(length for _, length in base.data_extents(0, base.size))
        finally:
            base.close()
    return total
