"""The kill matrix's table hides nothing that ended wrong."""

from __future__ import annotations

from support.kill_table import NOT_HIT, Cell, standing
from support.kill_victims import Victim


def cell(outcome: str, *problems: str, commit: str = "a") -> Cell:
    return Cell("reverse", 0, "-", Victim.SERVICE, outcome, 1.0, list(problems), commit)


def test_a_moment_that_was_missed_does_not_count_unless_something_ended_wrong() -> None:
    wrong = cell(NOT_HIT, "the job does not end")
    assert standing([cell(NOT_HIT), wrong]) == [wrong]


def test_a_wrong_place_counts_anew_once_it_was_run_under_another_commit() -> None:
    wrong, again = cell("done", "a record is missing"), cell("done", commit="b")
    assert standing([wrong, cell("done")]) == [wrong, cell("done")]
    assert standing([wrong, again]) == [again]
