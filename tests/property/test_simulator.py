"""The two-site simulator: stories of faults in which every promise is kept, and planted bugs that it must notice.

`tools/simulate.py` runs more of both. A failure here prints the seed and the command that replays it.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from support.simulator.bugs import BUGS
from support.simulator.run import STEPS, Outcome, run_seed

SEEDS = 80
AT_ONCE = 8
QUICKLY_CAUGHT = {
    "skipped-fsync": 0,
    "skipped-name-sync": 1,
    "skipped-log-sync": 1,
    "skipped-base-sync": 1,
    "skipped-table-sync": 1,
    "acknowledged-before-sealed": 1,
    "digest-not-checked": 34,
    "torn-manifest-accepted": 1,
    "swapped-extent-order": 6,
    "lost-zero-extent": 5,
    "fold-before-pin": 1,
    "prune-before-fold": 5,
    "thin-forgets-digests": 2,
    "grown-block-not-computed": 1,
    "compare-skips-a-block": 0,
    "wrong-extent-length": 0,
    "part-counted-twice": 3,
    "suspects-forgotten": 5,
}
"""Bugs, and a seed from which on they are looked for; `tools/simulate.py --all-bugs` plants all of them."""
LOOKED_FOR_MAX = 12


def replay(outcome: Outcome) -> str:
    return f"{outcome.failure}\nreplay: tools/simulate.py --replay {outcome.seed} --steps {outcome.steps}"


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_promise_is_kept_in_stories_of_faults(first: int) -> None:
    read = 0
    for seed in range(first, first + AT_ONCE):
        outcome = run_seed(seed)
        assert not outcome.failure, replay(outcome)
        read += outcome.points_read
    assert read > 20 * AT_ONCE  # a story that does nothing keeps all promises, too


@pytest.mark.parametrize("bug", sorted(QUICKLY_CAUGHT))
def test_a_planted_bug_is_noticed(bug: str) -> None:
    first = QUICKLY_CAUGHT[bug]
    assert any(
        run_seed(seed, STEPS, BUGS[bug].plant).failure for seed in range(first, first + LOOKED_FOR_MAX)
    )


@pytest.mark.parametrize("bug", [None, "swapped-extent-order"])
def test_a_seed_has_one_course(bug: str | None) -> None:
    plant = BUGS[bug].plant if bug else nullcontext
    first, second = (run_seed(5, STEPS, plant) for _ in range(2))
    assert first.lines
    assert (first.digest, first.lines, first.fates) == (second.digest, second.lines, second.fates)
