#!/usr/bin/env python3
"""Kills each process at each step of each operation, on two real sites of this machine, and writes the table.

    .venv/bin/python tools/kill_matrix.py [--rounds N] [--output docs/reference/kill-matrix.md]

A round takes about two minutes on two cores; as many rounds as the longest operation has tasks, times four victims, make the whole
table. Exit code 1 if any end state is wrong. What a cell means stands in the page that it writes.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

HEAD = """# What a kill does to an operation

<!-- Made by `.venv/bin/python tools/kill_matrix.py --output docs/reference/kill-matrix.md`: do not edit it by hand. -->

On two real sites of one machine (two libvirtd, a QEMU guest that writes, the service, two nodes) each process was killed with SIGKILL while the named
task of the operation's job was under way, and started again as a supervisor does. Nobody helped otherwise. *done*: the job succeeded. *rolled back*: the job
failed, everything was as before, and the same operation succeeded when it was asked for again. Empty: the process does not exist then, or the task is shorter than we can look.
In every cell: at no time two running copies; the guest runs on exactly the right side; after a planned failover it went on with the very next
record; the next recovery point is a strict prefix of its records. "node that runs it" is the node of the side where the guest ran when the operation began.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="how many; 20 make the whole table")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no round after so many minutes")
    parser.add_argument("--output", type=Path, help="write the page here")
    options = parser.parse_args()
    from support.kill_matrix import Matrix, Victim, table
    from support.lab_story import running_lab

    began = time.monotonic()
    victims = list(Victim)
    with running_lab() as lab:
        guest = lab.guest("matrix", rate=200)
        guest.start().close()
        matrix = Matrix(lab, guest)
        for number in range(options.first, options.first + options.rounds):
            if time.monotonic() - began > options.minutes * 60:
                break
            victim = victims[number % len(victims)]
            print(
                f"round {number}: kill the {victim.value} at task {number // len(victims)}", file=sys.stderr
            )
            known = len(matrix.cells)
            try:
                matrix.round(number // len(victims), victim)
            finally:
                for cell in matrix.cells[known:]:
                    print(f"   {cell}", file=sys.stderr)
        domain = guest.domain("primary")
        if domain.isActive():
            domain.destroy()
    cells = sorted(matrix.cells, key=lambda cell: cell.operation)
    wrong = [cell for cell in cells if cell.problems]
    hit = sum(cell.outcome != "not hit" for cell in cells)
    page = (
        f"{HEAD}{table(cells)}\n\n{hit} kills, {len(wrong)} wrong end states; {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, QEMU without KVM.\n"
    )
    print(page)
    if options.output is not None:
        options.output.write_text(page)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
