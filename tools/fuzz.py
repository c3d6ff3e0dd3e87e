#!/usr/bin/env python3
"""Feeds hostile input to everything that reads what others wrote, and shows that planted bugs are found.

    .venv/bin/python tools/fuzz.py                                    # every target, 20 s each (the API: as far as it comes in that time)
    .venv/bin/python tools/fuzz.py --target journal --seconds 600 --seed 7
    .venv/bin/python tools/fuzz.py --all-bugs                         # each planted bug in turn; exit code 1 if one is not found
    .venv/bin/python tools/fuzz.py --replay FILE --target log         # one input again

Exit code 1 if anything is found (or, with bugs, if one is not). The input that shows it is printed and kept with --keep.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.fuzz_bugs import BUGS, Bug  # noqa: E402 - the tests' folder comes first
from support.fuzz_loop import Outcome, fuzz, replay  # noqa: E402
from support.fuzz_targets import TARGETS, in_memory, made  # noqa: E402

API = "api"
"""Not guided by coverage: its inputs come from the OpenAPI document."""
NATIVE_HANG_S = 60
"""A loop in native code is ended so, with a trace of where it was."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--target", action="append", choices=[*sorted(TARGETS), API], help="only these; all without it"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for each target or bug")
    parser.add_argument("--runs", type=int, help="most inputs for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bug", action="append", choices=sorted(BUGS), help="plant this bug; it must be found"
    )
    parser.add_argument("--all-bugs", action="store_true", help="plant each bug in turn")
    parser.add_argument("--replay", type=Path, help="run this file's bytes once; needs one --target")
    parser.add_argument("--keep", type=Path, help="a folder for inputs that show something")
    options = parser.parse_args()
    if options.replay is not None:
        return _replay(options.target[0], options.replay)
    if options.bug or options.all_bugs:
        return _bugs(options)
    return max(
        _report(_run(name, options), options.keep) for name in options.target or [*sorted(TARGETS), API]
    )


def _run(name: str, options: argparse.Namespace, bug: Bug | None = None) -> Outcome:
    if name == API:
        return _run_api(options, bug)
    with in_memory() as folder, made(name, folder) as target, bug.planted() if bug else nullcontext():
        faulthandler.dump_traceback_later(options.seconds + NATIVE_HANG_S, exit=True)
        try:
            return fuzz(target, seed=options.seed, runs=options.runs, seconds=options.seconds)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _run_api(options: argparse.Namespace, bug: Bug | None) -> Outcome:
    from support.fuzz_api import ApiCampaign  # it alone needs schemathesis

    end = time.monotonic() + options.seconds
    with in_memory() as folder, closing(ApiCampaign(folder)) as api, bug.planted() if bug else nullcontext():
        return api.run(options.runs or 20, seed=options.seed, until=lambda: time.monotonic() > end)


def _report(outcome: Outcome, keep: Path | None) -> int:
    print(outcome, flush=True)
    if outcome.failure is not None and keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{outcome.target}-{hashlib.sha256(outcome.data).hexdigest()[:12]}"
        path.write_bytes(outcome.data)
        print(f"  kept: {path}")
    return int(outcome.failure is not None)


def _bugs(options: argparse.Namespace) -> int:
    missed = []
    for name in options.bug or sorted(BUGS):
        bug = BUGS[name]
        outcome = _run(bug.target, options, bug)
        found = outcome.failure
        what = (
            f"found after {outcome.runs} inputs: {type(found).__name__}: {str(found)[:120]}"
            if found
            else "MISSED"
        )
        print(f"{name} ({bug.target}): {what}", flush=True)
        missed += [] if found else [name]
    print(f"{len(missed)} missed{': ' + ', '.join(missed) if missed else ''}")
    return int(bool(missed))


def _replay(name: str, path: Path) -> int:
    with in_memory() as folder, made(name, folder) as target:
        found = replay(target, path.read_bytes())
    print(f"{type(found).__name__}: {found}" if found else "nothing")
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main())
