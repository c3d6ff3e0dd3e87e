#!/usr/bin/env python3
"""Fails a guest over as planned, back and forth, on two real sites of this machine, and judges each time.

    .venv/bin/python tools/role_swaps.py --swaps 25
    .venv/bin/python tools/role_swaps.py --all-bugs     # each planted bug in turn; exit code 1 if one is not found

What is judged stands in tests/support/role_swaps.py. Ends with exit code 1 at the first swap that is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import libvirt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.lab_bugs import SWAP_BUGS, planted  # noqa: E402 - the tests' folder comes first
from support.lab_story import running_lab  # noqa: E402
from support.role_swaps import OTHER, RoleSwaps, prepared  # noqa: E402

_SWAPS_PER_BUG = 3
"""A reversal's mistakes show in the second swap."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=25, help="how many failovers (default: 25)")
    parser.add_argument("--rate", type=int, default=200, help="records that the guest writes a second")
    parser.add_argument("--bug", action="append", choices=SWAP_BUGS, help="plant this bug; it must be found")
    parser.add_argument("--all-bugs", action="store_true", help="plant each bug in turn")
    arguments = parser.parse_args()
    bugs = arguments.bug or (list(SWAP_BUGS) if arguments.all_bugs else [])
    if bugs:
        return _bugs(bugs, arguments.rate)
    wrong = _swaps(arguments.swaps, arguments.rate)
    print(f"WRONG: {wrong}" if wrong else f"{arguments.swaps} swaps: no record lost, no byte different")
    return int(wrong is not None)


def _swaps(count: int, rate: int) -> AssertionError | None:
    """Swap so often; return what was wrong, if anything was."""
    print(
        f"{'swap':>4}  {'to':<10} {'points':>6} {'records':>8} {'changed':>11} {'shipped':>11}  ratio  seconds"
    )
    with tempfile.TemporaryDirectory(prefix="ss-swaps-") as folder, running_lab() as lab:
        guest = prepared(lab, "swapped", rate=rate)
        swaps = RoleSwaps(lab, guest, Path(folder))
        for _ in range(count):
            began = time.monotonic()
            try:
                swap = swaps.swap()
            except AssertionError as error:
                for site in OTHER:
                    with suppress(libvirt.libvirtError):  # not here
                        guest.domain(site).destroy()
                return error
            print(
                f"{swap.number:>4}  {swap.there:<10} {swap.points:>6} {swap.records:>8} {swap.changed:>11} {swap.shipped:>11}"
                f"  {swap.ratio:5.3f}  {time.monotonic() - began:7.1f}",
                flush=True,
            )
        lab.cli("item", "disable", "swapped")
    return None


def _bugs(names: list[str], rate: int) -> int:
    missed = 0
    for name in names:
        with planted(name):
            wrong = _swaps(_SWAPS_PER_BUG, rate)
        missed += wrong is None
        print(f"{name}: {'MISSED' if wrong is None else f'found: {wrong}'[:300]}", flush=True)
    print(f"{missed} missed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
