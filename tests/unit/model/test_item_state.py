"""Every combination of state, test state, operation and event is either in the tables or refused with a way out."""

import re
from itertools import product

import pytest

from secondsite.errors import OperationRefusedError
from secondsite.model.item import (
    EVENTS,
    OPERATIONS,
    RETURNS,
    TEST_EVENTS,
    TEST_OPERATIONS,
    Direction,
    Event,
    ItemState,
    Operation,
    TestState,
    advance,
    advance_test,
    allowed_operations,
    begin,
    refusal,
)

S, T, Op, E = ItemState, TestState, Operation, Event

IN_PROGRESS = {
    S.ENABLING,
    S.FAILING_OVER,
    S.FAILING_OVER_UNPLANNED,
    S.CHANGING_POINT,
    S.CANCELLING,
    S.COMMITTING,
    S.REVERSING,
    S.DISABLING,
}
COMBINATIONS = list(product(S, T, Op))


def reachable():
    """All pairs of states that operations and events can lead to from the start."""
    found = {(S.ENABLING, T.NONE)}
    todo = list(found)
    while todo:
        state, test = todo.pop()
        following = [(EVENTS[state, event], test) for event in E if (state, event) in EVENTS]
        following += [(state, TEST_EVENTS[test, event]) for event in E if (test, event) in TEST_EVENTS]
        following += [
            begin(state, test, operation) for operation in Op if refusal(state, test, operation) is None
        ]
        for pair in following:
            if pair not in found:
                found.add(pair)
                todo.append(pair)
    return found


@pytest.mark.parametrize(("state", "test", "operation"), COMBINATIONS)
def test_an_operation_is_in_the_table_or_refused_with_reason_and_way_out(state, test, operation):
    refused = refusal(state, test, operation)
    assert allowed_operations(state, test)[operation] == refused
    if refused is None:
        new_state, new_test = begin(state, test, operation)
        # A resync is one more point, and no state.
        assert ((new_state, new_test) != (state, test)) is (operation is not Op.RESYNC)
        if operation in {Op.TEST_FAILOVER, Op.CLEANUP_TEST}:
            assert (new_state, new_test) == (state, TEST_OPERATIONS[test, operation])
        else:
            assert (new_state, new_test) == (OPERATIONS[state, operation], test)
        return
    assert refused.reason
    assert refused.instead
    with pytest.raises(OperationRefusedError) as caught:
        begin(state, test, operation)
    assert refused.reason in caught.value.message
    assert caught.value.hint == refused.instead
    assert caught.value.attributes == {
        "operation": operation.value,
        "state": state.value,
        "test_state": test.value,
    }


@pytest.mark.parametrize(("state", "test"), sorted(reachable()))
def test_the_way_out_never_names_an_operation_that_is_refused_itself(state, test):
    """Where an operation is refused, something is possible: another operation, or an event that is to come."""
    waiting = any((state, event) in EVENTS for event in E) or any((test, event) in TEST_EVENTS for event in E)
    possible = [
        operation for operation, refused in allowed_operations(state, test).items() if refused is None
    ]
    assert possible or waiting or state is S.DISABLED
    for operation in Op:
        refused = refusal(state, test, operation)
        if refused is None:
            continue
        if refused.instead.startswith("clean it up first"):
            assert refusal(state, test, Op.CLEANUP_TEST) is None or test in {T.STARTING, T.CLEANING}
        elif test is T.NONE:
            named = [word for word in re.findall(r"[a-z]+(?:-[a-z]+)*", refused.instead) if word in set(Op)]
            assert not named or refusal(state, test, Op(named[0])) is None, refused


def test_every_state_can_be_reached():
    found = reachable()
    assert {state for state, _ in found} == set(S)
    assert {test for _, test in found} == set(T)


@pytest.mark.parametrize("state", sorted(IN_PROGRESS - {S.ENABLING}))
def test_every_state_in_progress_ends_well_or_badly(state):
    assert {event for found, event in EVENTS if found is state} - {E.FELL_BACK} == {E.SUCCEEDED, E.FAILED}
    assert EVENTS[state, E.SUCCEEDED] not in IN_PROGRESS
    assert EVENTS[state, E.FAILED] not in IN_PROGRESS


@pytest.mark.parametrize("state", [S.ENABLING, S.INITIAL_REPLICATING])
def test_enabling_ends_in_the_first_point_or_in_failure(state):
    assert EVENTS[state, E.FAILED] is S.ENABLE_FAILED
    assert (state, E.SUCCEEDED) not in EVENTS


@pytest.mark.parametrize("test", [T.STARTING, T.CLEANING])
def test_every_test_state_in_progress_ends_well_or_badly(test):
    assert {event for found, event in TEST_EVENTS if found is test} == {E.SUCCEEDED, E.FAILED}


@pytest.mark.parametrize(("state", "event"), [pair for pair in product(S, E) if pair not in EVENTS])
def test_an_event_that_is_not_in_the_table_is_refused(state, event):
    with pytest.raises(OperationRefusedError):
        advance(state, event)


@pytest.mark.parametrize(("test", "event"), [pair for pair in product(T, E) if pair not in TEST_EVENTS])
def test_a_test_event_that_is_not_in_the_table_is_refused(test, event):
    with pytest.raises(OperationRefusedError):
        advance_test(test, event)


@pytest.mark.parametrize(
    ("state", "operation"), list(product(sorted(IN_PROGRESS), sorted(set(Op) - {Op.CLEANUP_TEST})))
)
def test_nothing_but_a_cleanup_starts_while_something_runs(state, operation):
    assert refusal(state, T.NONE, operation) is not None


@pytest.mark.parametrize("operation", [Op.PLANNED_FAILOVER, Op.COMMIT, Op.REVERSE, Op.DISABLE])
@pytest.mark.parametrize("test", sorted(set(T) - {T.NONE}))
def test_role_changes_and_disable_wait_for_the_cleanup_of_a_test(operation, test):
    for state in S:
        assert refusal(state, test, operation) is not None


def test_a_test_is_never_beside_an_operation_that_gives_up_its_journal():
    beside = {state for state, test in reachable() if test is not T.NONE}
    assert beside == {
        S.PROTECTED,
        S.PAUSED,
        # these only read the journal, as the test does
        S.FAILING_OVER_UNPLANNED,
        S.UNPLANNED_COMMIT_PENDING,
        S.CHANGING_POINT,
        S.POINT_CHANGE_FAILED,
        S.CANCELLING,
    }


def test_only_one_test_at_a_time():
    for test in set(T) - {T.NONE}:
        assert refusal(S.PROTECTED, test, Op.TEST_FAILOVER) is not None


def test_a_failed_test_can_always_be_cleaned_up():
    for state in S:
        assert refusal(state, T.FAILED, Op.CLEANUP_TEST) is None


def test_a_failover_and_back_goes_the_documented_way():
    state, test = S.ENABLING, T.NONE
    state = advance(state, E.STARTED_INITIAL)
    state = advance(state, E.FIRST_POINT_SEALED)
    for _ in range(2):
        for operation, after in (
            (Op.PLANNED_FAILOVER, S.COMMIT_PENDING),
            (Op.COMMIT, S.COMMITTED),
            (Op.REVERSE, S.PROTECTED),
        ):
            state, test = begin(state, test, operation)
            state = advance(state, E.SUCCEEDED)
            assert state is after
    state, _ = begin(state, test, Op.DISABLE)
    assert advance(state, E.SUCCEEDED) is S.DISABLED


@pytest.mark.parametrize(
    ("state", "operation"),
    [(S.PROTECTED, Op.PLANNED_FAILOVER), (S.COMMIT_PENDING, Op.COMMIT), (S.COMMITTED, Op.REVERSE)],
)
def test_an_operation_that_failed_leaves_the_item_where_it_was(state, operation):
    running, _ = begin(state, T.NONE, operation)
    assert advance(running, E.FAILED) is state


def test_directions_turn_round():
    for direction in Direction:
        assert direction.reversed() is not direction
        assert direction.reversed().reversed() is direction


def test_an_unplanned_failover_changes_points_as_often_as_wanted_before_commit():
    for first in (S.PROTECTED, S.PAUSED):
        state, _ = begin(first, T.RUNNING, Op.UNPLANNED_FAILOVER)
        assert state is S.FAILING_OVER_UNPLANNED
        state = advance(state, E.SUCCEEDED)
        for end in (E.SUCCEEDED, E.FELL_BACK):
            state, _ = begin(state, T.RUNNING, Op.CHANGE_POINT)
            state = advance(state, end)
            assert state is S.UNPLANNED_COMMIT_PENDING
        assert refusal(state, T.RUNNING, Op.COMMIT) is not None
        state, _ = begin(state, T.NONE, Op.COMMIT)
        assert advance(state, E.SUCCEEDED) is S.COMMITTED


def test_a_change_of_the_point_that_left_nothing_running_can_be_made_again_or_cancelled():
    failed = advance(S.CHANGING_POINT, E.FAILED)
    assert failed is S.POINT_CHANGE_FAILED
    assert begin(failed, T.NONE, Op.CHANGE_POINT)[0] is S.CHANGING_POINT
    assert advance(begin(failed, T.NONE, Op.CANCEL)[0], E.SUCCEEDED) is S.PROTECTED
    assert refusal(failed, T.NONE, Op.COMMIT) is not None


@pytest.mark.parametrize(("state", "origins"), sorted(RETURNS.items()))
def test_a_failure_leads_back_to_where_the_operation_began(state, origins):
    for origin in S:
        expected = origin if origin in origins else EVENTS[state, E.FAILED]
        assert advance(state, E.FAILED, origin) is expected
    assert advance(state, E.FAILED) in origins


def test_disable_is_possible_wherever_nothing_else_runs():
    """But where there is nothing to disable."""
    refused = {state for state in S if refusal(state, T.NONE, Op.DISABLE) is not None}
    assert refused == IN_PROGRESS | {S.DISABLED}


def test_pause_stays_until_resume_and_a_refused_one_leads_back():
    state, _ = begin(S.PROTECTED, T.RUNNING, Op.PAUSE)
    assert state is S.PAUSED
    assert advance(state, E.PAUSE_REFUSED) is S.PROTECTED
    state, _ = begin(state, T.NONE, Op.RESUME)
    assert state is S.PROTECTED
    assert advance(state, E.RESUME_REFUSED) is S.PAUSED
