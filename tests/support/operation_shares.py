"""Which walk tries which part of the table of states and operations; together they try all of it.

What there is to try is read off the state machine: every pair of states (the item's and its test's) that can be reached,
with every operation. `share_of` gives each of these to one walk, or names the reason why no walk can meet it: so an
operation or a state that is added lands in the share of some walk, and is missed there until the walk takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from secondsite.model.item import (
    EVENTS,
    TEST_EVENTS,
    Event,
    ItemState,
    Operation,
    TestState,
    begin,
    refusal,
)

S, O, T = ItemState, Operation, TestState  # noqa: E741

Situation = tuple[ItemState, TestState]
Tried = tuple[ItemState, TestState, Operation]

BUSY: Final = frozenset(state for state, event in EVENTS if event in {Event.SUCCEEDED, Event.STARTED_INITIAL})
"""States that end by themselves, with their job."""
BUSY_TESTS: Final = frozenset(test for test, _event in TEST_EVENTS)


class Share(StrEnum):
    """The walks: each is one test."""

    ENABLE = "enable"
    TESTS = "tests"
    PLANNED = "planned"
    UNPLANNED = "unplanned"
    POINTS = "points"


_HOME: Final = {
    S.ENABLING: Share.ENABLE,
    S.ENABLE_FAILED: Share.ENABLE,
    S.INITIAL_REPLICATING: Share.ENABLE,
    S.DISABLING: Share.ENABLE,
    S.DISABLE_FAILED: Share.ENABLE,
    S.DISABLED: Share.ENABLE,
    S.PROTECTED: Share.TESTS,
    S.PAUSED: Share.TESTS,
    S.FAILING_OVER: Share.PLANNED,
    S.COMMIT_PENDING: Share.PLANNED,
    S.COMMITTING: Share.PLANNED,
    S.COMMITTED: Share.PLANNED,
    S.REVERSING: Share.PLANNED,
    S.FAILING_OVER_UNPLANNED: Share.UNPLANNED,
    S.UNPLANNED_COMMIT_PENDING: Share.UNPLANNED,
    S.CHANGING_POINT: Share.UNPLANNED,
    S.CANCELLING: Share.UNPLANNED,
    S.POINT_CHANGE_FAILED: Share.POINTS,
}
"""Where a state is met when there is no test; a state that is added has no home and fails here."""

_ELSEWHERE: Final = {
    (S.PROTECTED, O.DISABLE): Share.ENABLE,
    (S.PAUSED, O.DISABLE): Share.ENABLE,
    (S.PROTECTED, O.PLANNED_FAILOVER): Share.PLANNED,
    (S.PROTECTED, O.UNPLANNED_FAILOVER): Share.UNPLANNED,
    (S.UNPLANNED_COMMIT_PENDING, O.DISABLE): Share.TESTS,
    (S.COMMITTED, O.DISABLE): Share.UNPLANNED,
}
"""What leads from one walk's states to another's, and the ends, of which a walk has only one."""

UNSTARTED: Final = (
    "a node does the orders of one item in turn: a test that starts has started before a failover that was asked for "
    "after it, and what follows a failover comes later still"
)
ALIKE: Final = "the table says the same of a test that failed as of one that runs, which is cleaned up there"


REASONS: Final = frozenset({UNSTARTED, ALIKE})
"""All reasons for which a part of the table is not tried."""


def share_of(state: ItemState, test: TestState, operation: Operation) -> Share | str:
    """Return whose it is to try this, or the reason why it is not tried."""
    home = _HOME[state]
    if test is T.NONE:
        return _ELSEWHERE.get((state, operation), home)
    if home is Share.TESTS:
        return Share.POINTS if operation is O.UNPLANNED_FAILOVER else home
    if test is T.STARTING and state is not S.FAILING_OVER_UNPLANNED:
        return UNSTARTED
    if test is T.FAILED and state in BUSY and operation is O.CLEANUP_TEST:
        return ALIKE
    return Share.POINTS


def table() -> Iterator[Tried]:
    """Every operation in every pair of states that operations and events can lead to from the start."""
    for state, test in sorted(_reachable()):
        for operation in Operation:
            yield state, test, operation


def _reachable() -> set[Situation]:
    found = {(S.ENABLING, T.NONE)}
    todo = list(found)
    while todo:
        state, test = todo.pop()
        following = [(EVENTS[state, event], test) for event in Event if (state, event) in EVENTS]
        following += [(state, TEST_EVENTS[test, event]) for event in Event if (test, event) in TEST_EVENTS]
        following += [
            begin(state, test, operation)
            for operation in Operation
            if refusal(state, test, operation) is None
        ]
        todo += [pair for pair in dict.fromkeys(following) if pair not in found]
        found.update(following)
    return found


def settled(situation: Situation) -> bool:
    """Whether nothing is under way: it stays so until somebody asks for something."""
    return situation[0] not in BUSY and situation[1] not in BUSY_TESTS


@dataclass
class Seen:
    """What a walk has tried: allowed and done as the table says, and refused with its reason."""

    done: set[Tried] = field(default_factory=set)
    refused: set[Tried] = field(default_factory=set)

    def must_hold(self, share: Share) -> None:
        """Fail unless the share was tried, all of it."""
        mine = [tried for tried in table() if share_of(*tried) is share]
        untried = [tried for tried in mine if refusal(*tried) is None and tried not in self.done]
        assert not untried, f"allowed, and not tried: {_words(untried)}"
        unasked = [tried for tried in mine if refusal(*tried) is not None and tried not in self.refused]
        assert not unasked, f"refused, and not asked for: {_words(unasked)}"


def _words(tried: list[Tried]) -> str:
    return "; ".join(f"{operation} when {state}, test {test}" for state, test, operation in tried)
