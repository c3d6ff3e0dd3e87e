"""Consistency groups on the source: the members' cycles meet, and their snapshots are begun while all stand still.

Each member keeps its replicator; what is shared is the moment of the snapshot (docs/design/groups.md has the picture).

What it promises: a cycle that is told a `Cut` began its snapshot while every machine of the group stood still, and so did
all others that were told the same one. A member that is away or fails holds up nobody beyond one copy frequency.
What it does not do: it does not know whether the others' points were sealed; who looks at the journals does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Final, Protocol

import structlog

from secondsite.capture.port import CancelledError, Capture, HasInstant, Snapshot
from secondsite.errors import SecondSiteError
from secondsite.model.ids import GroupId, ItemId
from secondsite.model.manifest import GROUP_LABEL, GROUP_MEMBERS_LABEL
from secondsite.node.source.barrier import Pausing, StandStill

READY_MAX_S: Final = 60.0
"""How long members that have met wait for each other's captures, and for a freeze of a guest's file systems."""
_POLL_S: Final = 0.1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cut:
    """One common stand-still, as each of its members sees it."""

    group: GroupId
    number: int
    members: int
    time: datetime

    def labels(self) -> dict[str, str]:
        """Return what the members' manifests carry."""
        return {GROUP_LABEL: f"{self.group}:{self.number}", GROUP_MEMBERS_LABEL: str(self.members)}


class Peers(Protocol):
    """What a group asks of the members' replicators."""

    def takes_part(self, item: ItemId) -> bool:
        """Whether the member can be expected to come to the next cut."""
        ...

    def call(self, item: ItemId) -> None:
        """Let a member that waits for its interval begin its cycle now."""
        ...


class Meeting:
    """A member's part in one round. `cut` is known after `still`; None: the snapshot is the member's own alone."""

    cut: Cut | None = None

    @contextmanager
    def still(self) -> Iterator[None]:
        """All members stand still while the snapshots of all are begun in here."""
        yield

    def capture(self, capture: Capture) -> Capture:
        """Return `capture` with its snapshot begun in `still`. Whatever freezes the guest goes around it."""
        return capture

    @property
    def labels(self) -> dict[str, str]:
        """What the manifest of the point carries."""
        return {} if self.cut is None else self.cut.labels()


class _Phase(Enum):
    GATHERING = auto()
    MET = auto()
    STILL = auto()
    OVER = auto()


class Group:
    """The meeting place of one group's members. Thread-safe: each comes in its own replicator's thread."""

    def __init__(
        self,
        identity: GroupId,
        members: frozenset[ItemId],
        peers: Peers,
        pausing: Pausing,
        next_number: Callable[[], int],
    ) -> None:
        self.id = identity
        self.members = members
        self.cuts = self.failed = self.alone = 0
        self.pause_s: float | None = None
        """The length of the last common pause."""
        self._peers = peers
        self._pausing = pausing
        self._next_number = next_number
        self._changed = threading.Condition()
        self._gathering: _Round | None = None

    @contextmanager
    def meet(
        self, item: ItemId, machine: str, wait_s: float, cancelled: Callable[[], bool]
    ) -> Iterator[Meeting]:
        """Wait for the others, and yield the member's part of the round.

        Raises:
            CancelledError: `cancelled` said so while it waited.
        """
        round_ = self._gather(item, machine, wait_s, cancelled)
        if round_ is None:
            yield Meeting()
            return
        try:
            yield _Together(round_, item, cancelled)
        finally:
            round_.leave(item)

    def _gather(
        self, item: ItemId, machine: str, wait_s: float, cancelled: Callable[[], bool]
    ) -> _Round | None:
        with self._changed:
            round_ = self._gathering
            if round_ is None:
                round_ = self._gathering = _Round(self, self._changed, time.monotonic() + wait_s)
            round_.machines[item] = machine
            absent = self.members - set(round_.machines)
            self._changed.notify_all()
        for other in absent:
            self._peers.call(other)
        while True:
            # Asked without the lock: the answer may have to wait for what a member's thread holds.
            awaited = any(self._peers.takes_part(other) for other in self.members - set(round_.machines))
            with self._changed:
                if round_.phase is _Phase.GATHERING:
                    if cancelled():
                        del round_.machines[item]
                        if not round_.machines:
                            self._gathering = None
                        raise CancelledError("stopped while it waited for its group")
                    self._decide(round_, awaited)
                if round_.phase is not _Phase.GATHERING:
                    return round_ if round_.together else None
                self._changed.wait(_POLL_S)

    def _decide(self, round_: _Round, awaited: bool) -> None:
        """End the gathering when all are here, or when there is nobody left to wait for. The caller holds the lock."""
        if set(round_.machines) >= self.members:
            round_.together = len(round_.machines) > 1
        elif awaited and time.monotonic() < round_.deadline:
            return
        else:
            self.alone += 1
        round_.phase = _Phase.MET
        self._gathering = None
        self._changed.notify_all()

    def dissolve(self) -> None:
        """The group has other members now, or none: who waits here goes on alone."""
        with self._changed:
            if self._gathering is not None:
                self._gathering.phase = _Phase.MET
                self._gathering = None
                self._changed.notify_all()

    def stand_still(self, round_: _Round) -> StandStill:
        """Return the stand-still of a round, with a number that was never used before."""
        round_.number = self._next_number()
        name = f"{self.id}-{round_.number}"  # its own, since the note of the one before may still be removed
        return StandStill(self._pausing, name, list(round_.machines.values()), round_.expired)


class _Round:
    """One meeting of all members: from who comes first to the moment at which all run again."""

    def __init__(self, group: Group, changed: threading.Condition, deadline: float) -> None:
        self.deadline = deadline
        self.machines: dict[ItemId, str] = {}
        self.phase = _Phase.GATHERING
        self.together = False
        self.number = 0
        self.cut: Cut | None = None
        self._group = group
        self._changed = changed
        self._ready: set[ItemId] = set()
        self._done: set[ItemId] = set()
        self._stand_still: StandStill | None = None

    def enter(self, item: ItemId, cancelled: Callable[[], bool]) -> bool:
        """Wait until all are ready and stand still, or until it is certain that they won't; say which."""
        if item in self._ready:
            return False
        deadline = time.monotonic() + READY_MAX_S
        with self._changed:
            self._ready.add(item)
            leads = self.phase is _Phase.MET and self._ready == set(self.machines)
            while not leads and self.phase is _Phase.MET:
                if cancelled() or time.monotonic() > deadline:
                    self._fail()
                    return False
                self._changed.wait(_POLL_S)
        if leads:
            self._begin()
        with self._changed:
            return self.phase is _Phase.STILL

    def _begin(self) -> None:
        try:
            stand_still = self._group.stand_still(self)
            with self._changed:
                if self._given_up():
                    return
                self._stand_still = stand_still
            moment = stand_still.begin()
        except BaseException as error:
            with self._changed:
                self._fail()
            if not isinstance(error, SecondSiteError):
                raise
            log.warning("no common point", group=self._group.id, error=error.to_dict())
            return
        with self._changed:
            if not self._given_up():
                self.cut = Cut(self._group.id, self.number, len(self.machines), moment)
                self.phase = _Phase.STILL
                self._changed.notify_all()
                return
        stand_still.end()  # somebody gave up waiting, or the watchdog was faster

    def exit(self, item: ItemId) -> None:
        """The member's snapshot is begun, or has failed; wait until all are so far and run again."""
        with self._changed:
            if self.phase is not _Phase.STILL:
                return
            self._done.add(item)
            last = self._done == set(self.machines)
            while not last and self.phase is _Phase.STILL:
                self._changed.wait()  # the watchdog ends it, if nobody else does
        if last:
            assert self._stand_still is not None
            held = self._stand_still.end()
            with self._changed:
                if held:
                    self._succeed(self._stand_still.pause_s)
                else:
                    self._fail()

    def expired(self) -> None:
        """The watchdog has resumed everybody: what was begun is no common point."""
        with self._changed:
            self._fail()

    def leave(self, item: ItemId) -> None:
        """The member's cycle is past its snapshot, or ended before it came so far."""
        with self._changed:
            if item not in self._ready:
                self._fail()

    def _given_up(self) -> bool:
        return self.phase is not _Phase.MET

    def _succeed(self, pause_s: float) -> None:
        if self.phase is not _Phase.OVER:
            self._group.cuts += 1
            self._group.pause_s = pause_s
            self.phase = _Phase.OVER
            self._changed.notify_all()

    def _fail(self) -> None:
        """No cut; everybody goes on alone. The caller holds the lock."""
        if self.phase is not _Phase.OVER:
            self.cut = None
            self._group.failed += 1
            self.phase = _Phase.OVER
            self._changed.notify_all()


class _Together(Meeting):
    """A member's part in a round in which all have met."""

    def __init__(self, round_: _Round, item: ItemId, cancelled: Callable[[], bool]) -> None:
        self._round = round_
        self._item = item
        self._cancelled = cancelled

    @contextmanager
    def still(self) -> Iterator[None]:
        """See `Meeting.still`."""
        self.cut = None
        stands = self._round.enter(self._item, self._cancelled)
        try:
            yield
        finally:
            self._round.exit(self._item)
        if stands:
            self.cut = self._round.cut

    def capture(self, capture: Capture) -> Capture:
        """See `Meeting.capture`."""
        return _StillCapture(capture, self)


class _StillCapture:
    """A capture whose first snapshot is begun while the group stands still, and has the time of the cut."""

    def __init__(self, capture: Capture, meeting: Meeting) -> None:
        self._capture = capture
        self._meeting = meeting

    def snapshot(self, *, since: str | None, new: str) -> Snapshot:
        """See the port. A second one, after tracking turned out to be lost, is the member's own."""
        if isinstance(self._capture, HasInstant):
            self._capture.instant = self._meeting.still
            snapshot = self._capture.snapshot(since=since, new=new)
        else:
            with self._meeting.still():
                snapshot = self._capture.snapshot(since=since, new=new)
        if self._meeting.cut is not None:
            snapshot.time = self._meeting.cut.time
        return snapshot

    def forget(self, keep: Collection[str]) -> None:
        """See the port."""
        self._capture.forget(keep)

    def tidy(self) -> None:
        """See the port."""
        self._capture.tidy()
