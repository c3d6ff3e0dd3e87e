#!/usr/bin/env python3
"""Runs stories of the two-site simulator (docs/design/proofs/simulator.md), and shows that it finds planted bugs.

A failure prints the seed and the command that replays it, step by step. The order of sets depends on the process's hash seed,
so this starts itself again with a fixed one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.simulator.run import Outcome

ROOT = Path(__file__).resolve().parent.parent
SEEDS_PER_BUG = 500


def main() -> int:
    """Run what the arguments say; 0 if all promises were kept (or, with --all-bugs, every bug was caught)."""
    options = _arguments()
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    if options.all_bugs:
        return _all_bugs(options)
    if options.replay is not None:
        return _replay(options)
    return _seeds(options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many stories (default 100)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--steps", type=int, default=None, help="steps in a story")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one story and print it")
    parser.add_argument("--bug", help="plant this bug")
    parser.add_argument("--all-bugs", action="store_true", help="plant each bug in turn; each must be caught")
    return parser.parse_args()


def _run(seed: int, options: argparse.Namespace, bug: str | None) -> Outcome:
    from support.simulator.bugs import BUGS
    from support.simulator.run import STEPS, run_seed

    plant = BUGS[bug].plant if bug else nullcontext
    return run_seed(seed, STEPS if options.steps is None else options.steps, plant)


def _seeds(options: argparse.Namespace) -> int:
    began, done, failed, points = time.monotonic(), 0, 0, 0
    for seed in range(options.first, options.first + options.seeds):
        if options.seconds is not None and time.monotonic() - began >= options.seconds:
            break
        outcome = _run(seed, options, options.bug)
        done, points = done + 1, points + outcome.points_read
        if outcome.failure:
            failed += 1
            _tell_failure(outcome, options.bug)
    took_s = time.monotonic() - began
    print(f"{done} seeds, {failed} failed, {points} points read, {done / max(took_s, 1e-9):.1f} seeds/s")
    return 1 if failed else 0


def _tell_failure(outcome: Outcome, bug: str | None) -> None:
    planted = f" --bug {bug}" if bug else ""
    print(f"seed {outcome.seed} FAILED: {outcome.reason}")
    print(f"  after {len(outcome.lines)} steps; {outcome.geometry}")
    print(f"  replay: tools/simulate.py --replay {outcome.seed} --steps {outcome.steps}{planted}")


def _replay(options: argparse.Namespace) -> int:
    outcome = _run(options.replay, options, options.bug)
    print(f"seed {outcome.seed}: {outcome.geometry}")
    print("\n".join(f"  {line}" for line in outcome.lines))
    print(f"fates of requests: {outcome.fates}; points read: {outcome.points_read}; digest {outcome.digest}")
    if outcome.failure:
        print(outcome.failure)
        _tell_failure(outcome, options.bug)
    return 1 if outcome.failure else 0


def _all_bugs(options: argparse.Namespace) -> int:
    from support.simulator.bugs import BUGS

    missed = 0
    print(f"{'planted bug':32} {'seed':>5} {'s':>6}  caught by")
    for name in [options.bug] if options.bug else BUGS:
        began = time.monotonic()
        caught = None
        for seed in range(options.first, options.first + SEEDS_PER_BUG):
            outcome = _run(seed, options, name)
            if outcome.failure:
                caught = outcome
                break
        took_s = time.monotonic() - began
        missed += caught is None
        what = f"NOT CAUGHT in {SEEDS_PER_BUG} seeds" if caught is None else caught.reason[:110]
        print(f"{name:32} {'' if caught is None else caught.seed:>5} {took_s:6.1f}  {what}", flush=True)
    print(f"{len(BUGS) if not options.bug else 1} planted bugs, {missed} not caught")
    return 1 if missed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
