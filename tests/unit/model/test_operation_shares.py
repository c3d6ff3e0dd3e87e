"""The walks on real guests have all of the table between them, but for what is listed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.model.item import ItemState, Operation, TestState, refusal
from support.operation_shares import ALIKE, REASONS, UNSTARTED, Seen, Share, share_of, table

S, O, T = ItemState, Operation, TestState  # noqa: E741
STORIES = Path(__file__).parents[2] / "acceptance"
AMID = [S.CANCELLING, S.CHANGING_POINT, S.POINT_CHANGE_FAILED, S.UNPLANNED_COMMIT_PENDING]


def without(reason: str) -> list[tuple[ItemState, TestState, Operation]]:
    return [tried for tried in table() if share_of(*tried) == reason]


def test_every_share_is_walked_by_one_story():
    stories = "".join(path.read_text() for path in STORIES.glob("test_every_*.py"))
    for share in Share:
        assert stories.count(f"walking(lab, Share.{share.name})") == 1, share


def test_all_of_the_table_is_tried_but_for_what_is_named():
    for tried in table():
        assert share_of(*tried) in {*Share, *REASONS}, tried
    assert without(UNSTARTED) == [(state, T.STARTING, each) for state in AMID for each in Operation]
    assert without(ALIKE) == [
        (state, T.FAILED, O.CLEANUP_TEST)
        for state in (S.CANCELLING, S.CHANGING_POINT, S.FAILING_OVER_UNPLANNED)
    ]


def test_what_is_said_to_be_alike_is_tried_with_a_test_that_runs():
    for state, _, operation in without(ALIKE):
        assert refusal(state, T.FAILED, operation) == refusal(state, T.RUNNING, operation)
        assert share_of(state, T.RUNNING, operation) in set(Share)


def test_a_walk_that_leaves_something_out_fails():
    mine = [tried for tried in table() if share_of(*tried) is Share.PLANNED]
    seen = Seen(
        done={tried for tried in mine if refusal(*tried) is None},
        refused={tried for tried in mine if refusal(*tried) is not None},
    )
    seen.must_hold(Share.PLANNED)
    for kept in (seen.done, seen.refused):
        left_out = kept.pop()
        with pytest.raises(AssertionError, match=f"{left_out[2]} when {left_out[0]}, test {left_out[1]}"):
            seen.must_hold(Share.PLANNED)
        kept.add(left_out)
