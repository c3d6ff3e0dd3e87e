"""Logs, zero lists, manifests and journals that somebody forged: refused with an error of ours, in bounded time and memory. See docs/design/proofs/hostile-input.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fuzz_bugs import BUGS
from support.fuzz_loop import fuzz
from support.fuzz_targets import TARGETS, in_memory, made

RUNS = {
    "log": 4000,
    "zeros": 6000,
    "manifest": 6000,
    "documents": 3000,
    "journal": 80,
    "nbd": 700,
    "ship": 500,
}
FOUND_WITHIN = 20_000
"""Inputs; seed 0 needs far fewer for each of these."""
QUICK_BUGS = (
    "log-zero-distance",
    "log-unchecked-ranges",
    "zeros-trusted-count",
    "manifest-deep",
    "documents-any-number",
    "nbd-read-length",
    "ship-early-answer",
    "ship-endless-chunks",
)


def test_every_target_has_its_share() -> None:
    assert set(RUNS) == set(TARGETS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_hostile_input_is_refused_clearly_and_within_bounds(name: str) -> None:
    with in_memory() as folder, made(name, folder) as target:
        outcome = fuzz(target, seed=0, runs=RUNS[name])
    assert outcome.failure is None, str(outcome)
    assert outcome.kept > 3, "the fuzzer has reached nothing"


@pytest.mark.parametrize("name", QUICK_BUGS)
def test_the_fuzzer_finds_a_planted_bug(name: str) -> None:
    bug = BUGS[name]
    with in_memory() as folder, made(bug.target, folder) as target, bug.planted():
        outcome = fuzz(target, seed=0, runs=FOUND_WITHIN)
    assert outcome.failure is not None, str(outcome)


def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    seen = []
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        with made("log", tmp_path / part) as target:
            seen.append(fuzz(target, seed=5, runs=800).corpus)
    assert seen[0] == seen[1]
