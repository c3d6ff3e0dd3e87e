"""The table of states and operations as a page: `python -m secondsite.model.table > docs/reference/operations.md`.

Made from the state machine alone, so that the page says what the service does. A test compares the two.
"""

from __future__ import annotations

import sys
from typing import Final

from secondsite.model.item import (
    EVENTS,
    RETURNS,
    TEST_EVENTS,
    Event,
    ItemState,
    Operation,
    TestState,
    advance_test,
    begin,
    refusal,
)

_TESTS: Final = frozenset({Operation.TEST_FAILOVER, Operation.CLEANUP_TEST})
_HEAD: Final = """\
# What may be done with an item, state by state

<!-- Made by `python -m secondsite.model.table > docs/reference/operations.md`: do not edit it by hand. -->

The service answers each item with `allowed_operations`, computed from this table; a refused operation names the reason and the way out.
An operation on the item waits while another one runs. A test failover is apart from the item's state and has a table of its own.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *_summary(), *_details(), *_tests(), *_ends()])


def _summary() -> list[str]:
    lines = ["## At a glance", "", "No test failover exists. ✓: allowed.", ""]
    columns = [operation for operation in Operation if operation is not Operation.CLEANUP_TEST]
    lines.append("| state | " + " | ".join(operation.value for operation in columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for state in ItemState:
        marks = ["✓" if refusal(state, TestState.NONE, operation) is None else "" for operation in columns]
        lines.append(f"| {state.value} | " + " | ".join(marks) + " |")
    return [*lines, ""]


def _details() -> list[str]:
    lines: list[str] = ["## State by state", ""]
    for state in ItemState:
        lines += [
            f"### {state.value}",
            "",
            "| operation | what follows, or why not | the way out |",
            "|---|---|---|",
        ]
        for operation in Operation:
            if operation is Operation.CLEANUP_TEST:
                continue
            refused = refusal(state, TestState.NONE, operation)
            if refused is not None:
                lines.append(f"| {operation.value} | refused: {refused.reason} | {refused.instead} |")
            else:
                lines.append(f"| {operation.value} | **{_following(state, operation)}** | |")
        lines.append("")
    return lines


def _following(state: ItemState, operation: Operation) -> str:
    after, test = begin(state, TestState.NONE, operation)
    if operation in _TESTS:
        return f"{after.value}, the test is {test.value}, then {advance_test(test, Event.SUCCEEDED).value}"
    ended = EVENTS.get((after, Event.SUCCEEDED))
    if ended is None:
        return after.value if after is not state else f"{after.value}, nothing else changes"
    return f"{after.value}, then {ended.value}"


def _tests() -> list[str]:
    lines = [
        "## While a test failover exists",
        "",
        "| test | refused, in states that allow it else | cleanup-test |",
        "|---|---|---|",
    ]
    for test in TestState:
        if test is TestState.NONE:
            continue
        waiting = [
            operation.value
            for operation in Operation
            if any(
                refusal(state, TestState.NONE, operation) is None
                and refusal(state, test, operation) is not None
                for state in ItemState
            )
        ]
        refused = refusal(ItemState.PROTECTED, test, Operation.CLEANUP_TEST)
        clean = "allowed, also while an operation of the item runs" if refused is None else refused.reason
        lines.append(f"| {test.value} | {', '.join(waiting)} | {clean} |")
    return [*lines, ""]


def _ends() -> list[str]:
    lines = [
        "## How operations end",
        "",
        "| state in progress | what happens | state after |",
        "|---|---|---|",
    ]
    for (state, event), after in EVENTS.items():
        back = RETURNS.get(state) if event is Event.FAILED else None
        ended = (
            after.value
            if back is None
            else "where it began: " + " or ".join(sorted(each.value for each in back))
        )
        lines.append(f"| {state.value} | {event.value} | {ended} |")
    for (test, event), following in TEST_EVENTS.items():
        lines.append(f"| test {test.value} | {event.value} | test {following.value} |")
    return [*lines, ""]


if __name__ == "__main__":
    sys.stdout.write(page())
