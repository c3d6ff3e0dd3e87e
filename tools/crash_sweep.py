#!/usr/bin/env python3
"""Cuts the power at every moment of short lives of a journal, and opens it on every state that the disk may be left in.

    .venv/bin/python tools/crash_sweep.py                             # every workload: some 27,000 states, ten minutes alone
    .venv/bin/python tools/crash_sweep.py --workload fold             # those whose name contains it
    .venv/bin/python tools/crash_sweep.py --seconds 120               # until then; what was not looked at is said
    .venv/bin/python tools/crash_sweep.py --bug data-not-synced       # with a planted bug, on the workloads that show it
    .venv/bin/python tools/crash_sweep.py --all-bugs                  # each of them must be seen

Prints a line for each workload: the calls that were recorded, the moments of a cut (and how many of them had more states than
`--limit`, so that a chosen part was built), the different states that were checked, and how many were wrong. Exit code 1 if a state is wrong; with
planted bugs, if one is not seen. The rules stand in tests/support/crash_states.py and docs/design/proofs/crash-sweep.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.crash_bugs import BUGS, Bug, planted  # noqa: E402 - the tests' folder comes first
from support.crash_lives import WORKLOADS  # noqa: E402
from support.crash_sweep import LIMIT, Outcome, Sweep  # noqa: E402

_COLUMNS = f"{'workload':<46}{'calls':>8}{'cuts':>8}{'bounded':>9}{'states':>8}{'wrong':>7}{'seconds':>9}"


def main() -> int:
    arguments = _parser().parse_args()
    deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory(prefix="crash-", dir=arguments.place) as place:
        sweep = Sweep(Path(place), limit=arguments.limit, deadline=deadline)
        if arguments.all_bugs or arguments.bug:
            chosen = [bug for bug in BUGS if arguments.all_bugs or bug.name in arguments.bug]
            unknown = set(arguments.bug) - {bug.name for bug in BUGS}
            if unknown:
                print(
                    f"no such bug: {', '.join(sorted(unknown))}; there are: {', '.join(bug.name for bug in BUGS)}"
                )
                return 2
            return _bugs(Path(place), chosen, arguments.limit)
        return _workloads(sweep, arguments.workload)


def _workloads(sweep: Sweep, wanted: list[str]) -> int:
    chosen = [each for each in WORKLOADS if not wanted or any(part in each.name for part in wanted)]
    total = Outcome(f"{len(chosen)} workloads")
    print(_COLUMNS)
    began = time.monotonic()
    skipped = 0
    for workload in chosen:
        started = time.monotonic()
        outcome = sweep.workload(workload)
        skipped += not outcome.complete
        total.add(outcome)
        _print(outcome, time.monotonic() - started)
        for text in outcome.wrong:
            print(f"    {text}")
    _print(total, time.monotonic() - began)
    if skipped:
        print(f"{skipped} workloads were not looked at to their end: the time was over")
    return 1 if total.wrong or not total.states else 0


def _bugs(place: Path, bugs: list[Bug], limit: int) -> int:
    missed = 0
    for bug in bugs:
        seen = ""
        states = 0
        for name in bug.workloads:
            workload = next(each for each in WORKLOADS if each.name == name)
            with planted(bug):
                outcome = Sweep(place, limit=limit, stop_at=1).workload(workload)
            states += outcome.states
            if outcome.wrong:
                seen = f"{name}: {outcome.wrong[0]}"
                break
        missed += not seen
        print(f"{'seen' if seen else 'MISSED':<8}{bug.name:<38}{bug.what}; after {states} states")
        if seen:
            print(f"        {seen[:200]}")
    print(f"{len(bugs) - missed} of {len(bugs)} planted bugs were seen")
    return 1 if missed else 0


def _print(outcome: Outcome, seconds: float) -> None:
    line = f"{outcome.name:<46}{outcome.calls:>8}{outcome.cuts:>8}{outcome.bounded:>9}{outcome.states:>8}"
    more = "" if outcome.complete else "  not to its end"
    print(f"{line}{len(outcome.wrong):>7}{seconds:>9.1f}{more}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", action="append", default=[], help="part of a name; may be repeated")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"states built for one moment ({LIMIT})")
    parser.add_argument("--place", type=Path, help="where to work; a file system in memory is fastest")
    parser.add_argument("--bug", action="append", default=[], help="plant this bug; may be repeated")
    parser.add_argument("--all-bugs", action="store_true", help="plant each bug in turn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
