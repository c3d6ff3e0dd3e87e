"""The state machine of a protected item.

Rules, in prose:

- An item is enabled, replicated initially, and then *protected*. Only a protected item can be failed over.
- A test failover runs beside replication and never disturbs it. There is one test at a time per item; a planned
  failover, a commit, a reverse and a disable wait until it was cleaned up, because its overlay reads the journal. An
  unplanned failover, a change of the point and a cancel do not wait: they only read the journal, too.
- *Paused* is a state that stays: the order to the source is given until it is answered. Resume ends it. A resync is no
  state at all, it is one more point.
- A planned failover shuts the active side down, ships the last changes and starts the other side. If it fails
  before the other side was started it is rolled back: the item is protected again and the machine runs where it ran.
- An unplanned failover does without the source. It starts the other side from the point that was chosen, and until
  commit another point may be chosen, as often as wanted. If no point starts, nothing runs (*point change failed*):
  choose again, or cancel.
- After a failover the item is *commit pending*: the other side runs. Cancel discards what it wrote and goes back to
  the source. Commit gives up all recovery points but the running state; then nothing can be cancelled, and nothing
  replicates until *reverse replicate* was done.
- Reverse replicate turns the direction round: the side that runs becomes the source. A failback is a planned
  failover of a reversed item, with its commit and reverse.
- Disable is possible wherever no other operation is under way.

What the tables do not allow is refused, with the reason and what to do instead. A role change (a failover, a change of
the point, a cancel) raises the item's epoch; the epoch is data, not state, and is checked at every boundary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from secondsite.errors import OperationRefusedError


class Direction(StrEnum):
    """Which way the item replicates."""

    PRIMARY_TO_RECOVERY = "primary-to-recovery"
    RECOVERY_TO_PRIMARY = "recovery-to-primary"

    def reversed(self) -> Direction:
        """Return the other direction."""
        return (
            Direction.RECOVERY_TO_PRIMARY
            if self is Direction.PRIMARY_TO_RECOVERY
            else Direction.PRIMARY_TO_RECOVERY
        )


class ItemState(StrEnum):
    """What the item is. In-progress states are gerunds."""

    ENABLING = "enabling"
    ENABLE_FAILED = "enable-failed"
    INITIAL_REPLICATING = "initial-replicating"
    PROTECTED = "protected"
    PAUSED = "paused"
    FAILING_OVER = "failing-over"
    COMMIT_PENDING = "commit-pending"
    FAILING_OVER_UNPLANNED = "failing-over-unplanned"
    UNPLANNED_COMMIT_PENDING = "unplanned-commit-pending"
    CHANGING_POINT = "changing-point"
    POINT_CHANGE_FAILED = "point-change-failed"
    CANCELLING = "cancelling"
    COMMITTING = "committing"
    COMMITTED = "committed"
    REVERSING = "reversing"
    DISABLING = "disabling"
    DISABLE_FAILED = "disable-failed"
    DISABLED = "disabled"


class TestState(StrEnum):
    """Whether a test failover of the item exists."""

    __test__ = False  # pytest must not collect it

    NONE = "none"
    STARTING = "starting"
    RUNNING = "running"
    CLEANING = "cleaning"
    FAILED = "failed"  # something may be left: clean up


class Operation(StrEnum):
    """What an operator may ask of an item."""

    TEST_FAILOVER = "test-failover"
    CLEANUP_TEST = "cleanup-test"
    PLANNED_FAILOVER = "planned-failover"
    UNPLANNED_FAILOVER = "unplanned-failover"
    CHANGE_POINT = "change-point"
    CANCEL = "cancel"
    COMMIT = "commit"
    REVERSE = "reverse"
    PAUSE = "pause"
    RESUME = "resume"
    RESYNC = "resync"
    DISABLE = "disable"


class Event(StrEnum):
    """What a running operation reports."""

    STARTED_INITIAL = "started-initial"
    FIRST_POINT_SEALED = "first-point-sealed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    FELL_BACK = "fell-back"  # it failed, and what was before it stands again
    PAUSE_REFUSED = "pause-refused"
    RESUME_REFUSED = "resume-refused"


S, O, E, T = ItemState, Operation, Event, TestState  # noqa: E741

OPERATIONS: Final[Mapping[tuple[ItemState, Operation], ItemState]] = {
    (S.PROTECTED, O.PLANNED_FAILOVER): S.FAILING_OVER,
    (S.PROTECTED, O.UNPLANNED_FAILOVER): S.FAILING_OVER_UNPLANNED,
    (S.PAUSED, O.UNPLANNED_FAILOVER): S.FAILING_OVER_UNPLANNED,
    (S.UNPLANNED_COMMIT_PENDING, O.CHANGE_POINT): S.CHANGING_POINT,
    (S.POINT_CHANGE_FAILED, O.CHANGE_POINT): S.CHANGING_POINT,
    (S.COMMIT_PENDING, O.CANCEL): S.CANCELLING,
    (S.UNPLANNED_COMMIT_PENDING, O.CANCEL): S.CANCELLING,
    (S.POINT_CHANGE_FAILED, O.CANCEL): S.CANCELLING,
    (S.COMMIT_PENDING, O.COMMIT): S.COMMITTING,
    (S.UNPLANNED_COMMIT_PENDING, O.COMMIT): S.COMMITTING,
    (S.COMMITTED, O.REVERSE): S.REVERSING,
    (S.PROTECTED, O.PAUSE): S.PAUSED,
    (S.PAUSED, O.RESUME): S.PROTECTED,
    (S.PROTECTED, O.RESYNC): S.PROTECTED,
    (S.ENABLE_FAILED, O.DISABLE): S.DISABLING,
    (S.INITIAL_REPLICATING, O.DISABLE): S.DISABLING,
    (S.PROTECTED, O.DISABLE): S.DISABLING,
    (S.PAUSED, O.DISABLE): S.DISABLING,
    (S.COMMIT_PENDING, O.DISABLE): S.DISABLING,
    (S.UNPLANNED_COMMIT_PENDING, O.DISABLE): S.DISABLING,
    (S.POINT_CHANGE_FAILED, O.DISABLE): S.DISABLING,
    (S.COMMITTED, O.DISABLE): S.DISABLING,
    (S.DISABLE_FAILED, O.DISABLE): S.DISABLING,
}
"""An operation moves the item at once to the state named here: one in progress, or the end itself if all that is left
is an order that stands until the source has answered it."""

EVENTS: Final[Mapping[tuple[ItemState, Event], ItemState]] = {
    (S.ENABLING, E.STARTED_INITIAL): S.INITIAL_REPLICATING,
    (S.ENABLING, E.FAILED): S.ENABLE_FAILED,
    (S.INITIAL_REPLICATING, E.FIRST_POINT_SEALED): S.PROTECTED,
    (S.INITIAL_REPLICATING, E.FAILED): S.ENABLE_FAILED,
    (S.PAUSED, E.PAUSE_REFUSED): S.PROTECTED,
    (S.PROTECTED, E.RESUME_REFUSED): S.PAUSED,
    (S.FAILING_OVER, E.SUCCEEDED): S.COMMIT_PENDING,
    (S.FAILING_OVER, E.FAILED): S.PROTECTED,
    (S.FAILING_OVER_UNPLANNED, E.SUCCEEDED): S.UNPLANNED_COMMIT_PENDING,
    (S.FAILING_OVER_UNPLANNED, E.FAILED): S.PROTECTED,
    (S.CHANGING_POINT, E.SUCCEEDED): S.UNPLANNED_COMMIT_PENDING,
    (S.CHANGING_POINT, E.FELL_BACK): S.UNPLANNED_COMMIT_PENDING,
    (S.CHANGING_POINT, E.FAILED): S.POINT_CHANGE_FAILED,
    (S.CANCELLING, E.SUCCEEDED): S.PROTECTED,
    (S.CANCELLING, E.FAILED): S.POINT_CHANGE_FAILED,
    (S.COMMITTING, E.SUCCEEDED): S.COMMITTED,
    (S.COMMITTING, E.FAILED): S.COMMIT_PENDING,
    (S.REVERSING, E.SUCCEEDED): S.PROTECTED,
    (S.REVERSING, E.FAILED): S.COMMITTED,
    (S.DISABLING, E.SUCCEEDED): S.DISABLED,
    (S.DISABLING, E.FAILED): S.DISABLE_FAILED,
}

RETURNS: Final[Mapping[ItemState, frozenset[ItemState]]] = {
    S.FAILING_OVER_UNPLANNED: frozenset({S.PROTECTED, S.PAUSED}),
    S.COMMITTING: frozenset({S.COMMIT_PENDING, S.UNPLANNED_COMMIT_PENDING}),
}
"""States in progress whose failure leads back to one of several states: the one that the operation began in."""

TEST_OPERATIONS: Final[Mapping[tuple[TestState, Operation], TestState]] = {
    (T.NONE, O.TEST_FAILOVER): T.STARTING,
    (T.RUNNING, O.CLEANUP_TEST): T.CLEANING,
    (T.FAILED, O.CLEANUP_TEST): T.CLEANING,
}

TEST_EVENTS: Final[Mapping[tuple[TestState, Event], TestState]] = {
    (T.STARTING, E.SUCCEEDED): T.RUNNING,
    (T.STARTING, E.FAILED): T.FAILED,
    (T.CLEANING, E.SUCCEEDED): T.NONE,
    (T.CLEANING, E.FAILED): T.FAILED,
}

_BUSY: Final[Mapping[ItemState, str]] = {
    S.ENABLING: "protection is being enabled",
    S.FAILING_OVER: "a planned failover is running",
    S.FAILING_OVER_UNPLANNED: "an unplanned failover is running",
    S.CHANGING_POINT: "the recovery point is being changed",
    S.CANCELLING: "the failover is being cancelled",
    S.COMMITTING: "the failover is being committed",
    S.REVERSING: "reverse replication is being set up",
    S.DISABLING: "protection is being disabled",
}

_INSTEAD: Final[Mapping[ItemState, str]] = {
    S.ENABLE_FAILED: "read the job's error, disable the item, mend the cause and protect it again",
    S.INITIAL_REPLICATING: "wait until the initial replication has sealed the first recovery point",
    S.PROTECTED: "test-failover, planned-failover or unplanned-failover is what this state offers",
    S.PAUSED: "resume replication first; an unplanned-failover is possible as it is",
    S.COMMIT_PENDING: "commit the failover, or cancel it",
    S.UNPLANNED_COMMIT_PENDING: "choose another point (change-point), commit the failover, or cancel it",
    S.POINT_CHANGE_FAILED: "choose another point (change-point), or cancel the failover",
    S.COMMITTED: "reverse the replication first, so that the machine is protected again",
    S.DISABLE_FAILED: "run disable again",
    S.DISABLED: "protect the machine again",
}

_STATE_TEXT: Final[Mapping[ItemState, str]] = {
    S.ENABLE_FAILED: "enabling protection failed",
    S.INITIAL_REPLICATING: "the initial replication is not complete",
    S.PROTECTED: "the item is protected and runs where it always ran",
    S.PAUSED: "replication is paused",
    S.COMMIT_PENDING: "the item has failed over as planned and waits for commit",
    S.UNPLANNED_COMMIT_PENDING: "the item has failed over and waits for commit",
    S.POINT_CHANGE_FAILED: "the last change of the recovery point failed, and the machine runs nowhere",
    S.COMMITTED: "the failover is committed and nothing replicates yet",
    S.DISABLE_FAILED: "a disable has failed",
    S.DISABLED: "the item is not protected",
}

_BECAUSE: Final[Mapping[tuple[ItemState, Operation], tuple[str, str]]] = {
    (S.PROTECTED, O.RESUME): (
        "replication is not paused",
        "nothing has to be done; to stop for a while: pause",
    ),
    (S.PAUSED, O.PAUSE): ("replication is paused already", "resume ends it"),
    (S.PAUSED, O.PLANNED_FAILOVER): (
        "replication is paused, so the last changes would not be shipped",
        "resume replication first; an unplanned-failover is possible as it is",
    ),
    (S.COMMIT_PENDING, O.CHANGE_POINT): (
        "after a planned failover the machine runs from the point at which nothing was in flight",
        "cancel the failover and make an unplanned-failover to the point that you want",
    ),
    (S.COMMITTED, O.CANCEL): (
        "the failover is committed: there is no recovery point left to go back to",
        "reverse the replication; a planned-failover then leads back",
    ),
    (S.COMMITTED, O.CHANGE_POINT): (
        "the failover is committed: there is no other recovery point left",
        "reverse the replication, so that the machine is protected again",
    ),
}
"""Where the state alone says too little."""

_NEEDS_NO_TEST: Final = frozenset({O.PLANNED_FAILOVER, O.COMMIT, O.REVERSE, O.DISABLE})
_TESTABLE: Final = frozenset({S.PROTECTED, S.PAUSED})
"""States in which the journal is there and a test of it says what a failover would do."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an operation is not allowed now, and what to do instead."""

    reason: str
    instead: str


def refusal(state: ItemState, test: TestState, operation: Operation) -> Refusal | None:
    """Return why `operation` is refused in this state, or None if it is allowed."""
    if state in _BUSY and not (operation is O.CLEANUP_TEST and test in {T.RUNNING, T.FAILED}):
        return Refusal(_BUSY[state], "wait for its job to end: secondsite job list")
    if operation is O.CLEANUP_TEST:
        return _test_refusal(test, operation)
    if operation is O.TEST_FAILOVER:
        if state not in _TESTABLE:
            return Refusal(_STATE_TEXT[state], _INSTEAD[state])
        return _test_refusal(test, operation)
    if (state, operation) not in OPERATIONS:
        return Refusal(*_BECAUSE.get((state, operation), (_STATE_TEXT[state], _INSTEAD[state])))
    if operation in _NEEDS_NO_TEST and test is not T.NONE:
        return Refusal("a test failover of this item exists", "clean it up first: cleanup-test")
    return None


def allowed_operations(state: ItemState, test: TestState) -> dict[Operation, Refusal | None]:
    """Return every operation with None if it is allowed now, else with the refusal."""
    return {operation: refusal(state, test, operation) for operation in Operation}


def begin(state: ItemState, test: TestState, operation: Operation) -> tuple[ItemState, TestState]:
    """Return the states after `operation` was accepted.

    Raises:
        OperationRefusedError: with the reason, and the way out as its hint.
    """
    refused = refusal(state, test, operation)
    if refused is not None:
        raise OperationRefusedError(
            f"{operation.value} is refused: {refused.reason}",
            hint=refused.instead,
            operation=operation.value,
            state=state.value,
            test_state=test.value,
        )
    if operation in {O.TEST_FAILOVER, O.CLEANUP_TEST}:
        return state, TEST_OPERATIONS[test, operation]
    return OPERATIONS[state, operation], test


def advance(state: ItemState, event: Event, began_in: ItemState | None = None) -> ItemState:
    """Return the state after `event`; an illegal move raises OperationRefusedError (a bug, never an input).

    `began_in`: the state in which the operation was accepted, for those whose failure leads back to it.
    """
    if event is E.FAILED and began_in is not None and began_in in RETURNS.get(state, ()):
        return began_in
    try:
        return EVENTS[state, event]
    except KeyError:
        raise OperationRefusedError(f"event {event.value} is illegal in state {state.value}") from None


def advance_test(test: TestState, event: Event) -> TestState:
    """Return the test's state after `event`; an illegal move raises OperationRefusedError."""
    try:
        return TEST_EVENTS[test, event]
    except KeyError:
        raise OperationRefusedError(f"event {event.value} is illegal in test state {test.value}") from None


def _test_refusal(test: TestState, operation: Operation) -> Refusal | None:
    if (test, operation) in TEST_OPERATIONS:
        return None
    if operation is O.CLEANUP_TEST:
        if test is T.NONE:
            return Refusal("there is no test failover to clean up", "nothing has to be done")
        return Refusal(f"the test failover is {test.value}", "wait for its job to end")
    return Refusal("a test failover of this item exists already", "clean it up first: cleanup-test")
