"""The state machine of a protected item.

Rules, in prose:

- An item is enabled, replicated initially, and then *protected*. Only a protected item can be failed over.
- A test failover runs beside replication and never disturbs it. There is one test at a time per item; a planned
  failover, a reverse and a disable wait until it was cleaned up, because its overlay reads the journal.
- A planned failover shuts the active side down, ships the last changes and starts the other side. If it fails
  before the other side was started it is rolled back: the item is protected again and the machine runs where it ran.
- After a failover the item is *commit pending*: the other side runs. Commit gives up all recovery points but the
  running state. Nothing replicates until *reverse replicate* was done.
- Reverse replicate turns the direction round: the side that runs becomes the source. A failback is a planned
  failover of a reversed item, with its commit and reverse.
- Disable is possible wherever no other operation is under way.

What the tables do not allow is refused, with the reason and what to do instead. A role change (a failover) raises
the item's epoch by one; the epoch is data, not state, and is checked at every boundary.
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
    FAILING_OVER = "failing-over"
    COMMIT_PENDING = "commit-pending"
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
    COMMIT = "commit"
    REVERSE = "reverse"
    DISABLE = "disable"


class Event(StrEnum):
    """What a running operation reports."""

    STARTED_INITIAL = "started-initial"
    FIRST_POINT_SEALED = "first-point-sealed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


S, O, E, T = ItemState, Operation, Event, TestState  # noqa: E741

OPERATIONS: Final[Mapping[tuple[ItemState, Operation], ItemState]] = {
    (S.PROTECTED, O.PLANNED_FAILOVER): S.FAILING_OVER,
    (S.COMMIT_PENDING, O.COMMIT): S.COMMITTING,
    (S.COMMITTED, O.REVERSE): S.REVERSING,
    (S.ENABLE_FAILED, O.DISABLE): S.DISABLING,
    (S.INITIAL_REPLICATING, O.DISABLE): S.DISABLING,
    (S.PROTECTED, O.DISABLE): S.DISABLING,
    (S.COMMIT_PENDING, O.DISABLE): S.DISABLING,
    (S.COMMITTED, O.DISABLE): S.DISABLING,
    (S.DISABLE_FAILED, O.DISABLE): S.DISABLING,
}
"""An operation that changes the item's state moves it at once to the in-progress state named here."""

EVENTS: Final[Mapping[tuple[ItemState, Event], ItemState]] = {
    (S.ENABLING, E.STARTED_INITIAL): S.INITIAL_REPLICATING,
    (S.ENABLING, E.FAILED): S.ENABLE_FAILED,
    (S.INITIAL_REPLICATING, E.FIRST_POINT_SEALED): S.PROTECTED,
    (S.INITIAL_REPLICATING, E.FAILED): S.ENABLE_FAILED,
    (S.FAILING_OVER, E.SUCCEEDED): S.COMMIT_PENDING,
    (S.FAILING_OVER, E.FAILED): S.PROTECTED,
    (S.COMMITTING, E.SUCCEEDED): S.COMMITTED,
    (S.COMMITTING, E.FAILED): S.COMMIT_PENDING,
    (S.REVERSING, E.SUCCEEDED): S.PROTECTED,
    (S.REVERSING, E.FAILED): S.COMMITTED,
    (S.DISABLING, E.SUCCEEDED): S.DISABLED,
    (S.DISABLING, E.FAILED): S.DISABLE_FAILED,
}

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
    S.COMMITTING: "the failover is being committed",
    S.REVERSING: "reverse replication is being set up",
    S.DISABLING: "protection is being disabled",
}

_INSTEAD: Final[Mapping[ItemState, str]] = {
    S.ENABLE_FAILED: "read the job's error, disable the item, mend the cause and protect it again",
    S.INITIAL_REPLICATING: "wait until the initial replication has sealed the first recovery point",
    S.PROTECTED: "test-failover or planned-failover is what this state offers",
    S.COMMIT_PENDING: "commit the failover first",
    S.COMMITTED: "reverse the replication first, so that the machine is protected again",
    S.DISABLE_FAILED: "run disable again",
    S.DISABLED: "protect the machine again",
}

_STATE_TEXT: Final[Mapping[ItemState, str]] = {
    S.ENABLE_FAILED: "enabling protection failed",
    S.INITIAL_REPLICATING: "the initial replication is not complete",
    S.PROTECTED: "the item is protected and runs where it always ran",
    S.COMMIT_PENDING: "the item has failed over and waits for commit",
    S.COMMITTED: "the failover is committed and nothing replicates yet",
    S.DISABLE_FAILED: "a disable has failed",
    S.DISABLED: "the item is not protected",
}

_NEEDS_NO_TEST: Final = frozenset({O.PLANNED_FAILOVER, O.COMMIT, O.REVERSE, O.DISABLE})


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
        if state is not S.PROTECTED:
            return Refusal(_STATE_TEXT[state], _INSTEAD[state])
        return _test_refusal(test, operation)
    if (state, operation) not in OPERATIONS:
        return Refusal(_STATE_TEXT[state], _INSTEAD[state])
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


def advance(state: ItemState, event: Event) -> ItemState:
    """Return the state after `event`; an illegal move raises OperationRefusedError (a bug, never an input)."""
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
            return Refusal("there is no test failover to clean up", "start one: test-failover")
        return Refusal(f"the test failover is {test.value}", "wait for its job to end")
    return Refusal("a test failover of this item exists already", "clean it up first: cleanup-test")
