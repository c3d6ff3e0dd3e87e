#!/usr/bin/env python3
"""Fails a guest over as planned, back and forth, on two real sites of this machine, and judges each time.

    .venv/bin/python tools/role_swaps.py --swaps 25

What is judged stands in tests/support/role_swaps.py. Ends with exit code 1 at the first swap that is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.lab_story import running_lab  # noqa: E402 - the tests' folder comes first
from support.role_swaps import RoleSwaps, prepared  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=25, help="how many failovers (default: 25)")
    parser.add_argument("--rate", type=int, default=200, help="records that the guest writes a second")
    arguments = parser.parse_args()
    print(
        f"{'swap':>4}  {'to':<10} {'points':>6} {'records':>8} {'changed':>11} {'shipped':>11}  ratio  seconds"
    )
    with tempfile.TemporaryDirectory(prefix="ss-swaps-") as folder, running_lab() as lab:
        swaps = RoleSwaps(lab, prepared(lab, "swapped", rate=arguments.rate), Path(folder))
        for _ in range(arguments.swaps):
            began = time.monotonic()
            try:
                swap = swaps.swap()
            except AssertionError as error:
                print(f"WRONG: {error}")
                return 1
            print(
                f"{swap.number:>4}  {swap.there:<10} {swap.points:>6} {swap.records:>8} {swap.changed:>11} {swap.shipped:>11}"
                f"  {swap.ratio:5.3f}  {time.monotonic() - began:7.1f}",
                flush=True,
            )
        lab.cli("item", "disable", "swapped")
    print(f"{arguments.swaps} swaps: no record lost, no byte different")
    return 0


if __name__ == "__main__":
    sys.exit(main())
