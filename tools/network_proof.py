#!/usr/bin/env python3
"""Replicates between two real ends over a bad line, and prints what was read and sent.

    .venv/bin/python tools/network_proof.py                     # every scenario, bounded: about a minute
    .venv/bin/python tools/network_proof.py --long              # the same, then a flap every 3 s for 5 minutes and a long transfer at 64 kbit/s
    .venv/bin/python tools/network_proof.py --scenario flap
    .venv/bin/python tools/network_proof.py --all-bugs          # each planted bug in turn; exit code 1 if one is not found

Exit code 1 if a scenario does not end as it must.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import structlog

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.network_bugs import BUGS, NetworkBug  # noqa: E402 - the tests' folder comes first
from support.network_hour import hour  # noqa: E402
from support.network_scenarios import KIB, MIB, SCENARIOS, Figures, flap, loss, thin  # noqa: E402

ALL: Mapping[str, Callable[[Path], Figures]] = {**SCENARIOS, "hour": hour}
LONG: Mapping[str, Callable[[Path], Figures]] = {
    "long flap": partial(flap, every_s=3.0, for_s=300.0),
    "long loss": partial(loss, size=12 * MIB),
    "long thin": partial(thin, size=1280 * KIB),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenario", action="append", choices=sorted(ALL), help="only these")
    parser.add_argument("--long", action="store_true", help="the long ones, too: about 10 minutes")
    parser.add_argument(
        "--bug", action="append", choices=sorted(BUGS), help="plant this bug; it must be found"
    )
    parser.add_argument("--all-bugs", action="store_true", help="plant each bug in turn")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if options.bug or options.all_bugs:
        return _bugs(options.bug or sorted(BUGS))
    chosen = {name: ALL[name] for name in options.scenario or ALL}
    if options.long:
        chosen |= LONG
    wrong = 0
    for name, scenario in chosen.items():
        found = _run(scenario)
        print(f"{name}: WRONG: {found!r}" if isinstance(found, Exception) else found, flush=True)
        wrong += isinstance(found, Exception)
    return int(wrong > 0)


def _run(scenario: Callable[[Path], Figures], bug: NetworkBug | None = None) -> Figures | Exception:
    with tempfile.TemporaryDirectory(prefix="ss-net-") as folder, bug.planted() if bug else nullcontext():
        try:
            return scenario(Path(folder) / "run")
        except Exception as error:  # noqa: BLE001 - whatever ends it, it is the outcome
            return error


def _bugs(names: list[str]) -> int:
    missed = 0
    for name in names:
        found = _run(ALL[BUGS[name].scenario], BUGS[name])
        caught = isinstance(found, Exception)
        print(
            f"{name} ({BUGS[name].scenario}): {f'found: {found!r}'[:200] if caught else 'MISSED'}", flush=True
        )
        missed += not caught
    print(f"{missed} missed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
