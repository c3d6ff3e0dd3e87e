#!/usr/bin/env python3
"""Kills each process at each step of each operation, on two real sites of this machine, and writes the table.

    .venv/bin/python tools/kill_matrix.py --kills kills.jsonl                      # all rounds, about 45 s each on two cores
    .venv/bin/python tools/kill_matrix.py --kills kills.jsonl --first 12           # go on from a round
    .venv/bin/python tools/kill_matrix.py --kills kills.jsonl --only reverse --victims "its QEMU" --late 2
    .venv/bin/python tools/kill_matrix.py --kills kills.jsonl more.jsonl --rounds 0 --output docs/reference/kill-matrix.md
    .venv/bin/python tools/kill_matrix.py --all-bugs                               # each planted bug; exit code 1 if one is not found

Kills add up in the file, each with its commit, so the table may come from several runs. A round whose end state is wrong ends its
lab; the next one begins in a fresh one. Exit code 1 if any end state is wrong. What a cell means stands in the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import kill_matrix  # noqa: E402 - the tests' folder comes first
from support.kill_matrix import ORDER, Broken, Matrix, a_short_round  # noqa: E402
from support.kill_table import Cell, keep, kept, standing, table  # noqa: E402
from support.kill_victims import Victim  # noqa: E402
from support.lab_bugs import KILL_BUGS, planted  # noqa: E402
from support.lab_story import running_lab  # noqa: E402
from support.wire_meter import metered  # noqa: E402

if TYPE_CHECKING:
    from support.lab_story import LabStory

MOMENTS = 4
"""In so many rounds each moment of each operation has its turn: the longest ones come twice in a round."""

HEAD = """# What a kill does to an operation

<!-- Made by `.venv/bin/python tools/kill_matrix.py --kills FILE... --rounds 0 --output docs/reference/kill-matrix.md`: do not edit it by hand. -->

Two real sites of one machine (two libvirtd, a QEMU guest that writes all the time, the service, two nodes). A row is an operation and the task of its job that was under way
(or the moment when it was accepted), a column the process that was killed with SIGKILL at that moment. The service, the nodes and libvirtd are started again, as a supervisor does.
Nobody helps otherwise. The number says how often.

- *done*: the job succeeded.
- *rolled back*: the job failed with a reason, everything was as before (a change of the point may also end with nothing running and say so), and the same operation succeeded when it was asked for again.
- *started by hand*: the guest's own QEMU was killed (now, or before the operation that moved it away), so the guest was off when the operation had ended right. It was started as an operator does, and went on with the very next record
  of its disks.
- *old disks kept*: the reversal was cut while it removed our own bitmaps from the old side's disks. Nobody knows any more that they are exactly the last point, so what they hold is kept as a point of its own until an operator gives it up
  (`secondsite point drop-diverged`), before the next commit. It cost a compare, and nothing else.
- Empty: there is no such process then, or the task is shorter than one can look.

In every cell: what went over the wire between the nodes, counted outside of them, is what the points that were sealed meanwhile changed, and at most one cycle's changes again (none where the service or a view server
died; up to 256 KiB of protocol, and 64 KiB to a point, beside it). At no time two running copies; the guest runs on exactly the right side; after a failover it went on with the very next record after the old side's disks, or after the point that the job names; the next recovery point holds
every record up to its last one, on all disks. "Node that runs it" is the node of the side where the guest ran when the operation began, "a QEMU that starts" one that did not run then: it is killed while libvirt
starts it, "its QEMU" once libvirt says that it runs. Short tasks were held up by stopping the node that does them. A view server is killed in a commit only if the
commit follows the failover at once and the disks are large enough to still need it (512 MiB here): those kills were made by `Matrix.operate` of tests/support/kill_matrix.py in a row of failovers.

Kills add up over runs in one file, each with its commit; a cell that was wrong counts anew once it was run again under another commit. A round takes a minute, all of them half an hour.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--kills",
        type=Path,
        nargs="+",
        default=[],
        help="where kills are kept, as lines of JSON; new ones are added to the last file",
    )
    parser.add_argument("--rounds", type=int, help="how many; without it, all")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no round after so many minutes")
    parser.add_argument(
        "--victims", nargs="+", default=[victim.value for victim in Victim], help="only these"
    )
    parser.add_argument("--only", nargs="+", default=[], help="only in these operations", choices=ORDER)
    parser.add_argument("--late", type=float, default=0.0, help="kill up to so many seconds later, at random")
    parser.add_argument("--shutdown", choices=("try", "no"), default="try", help="of the unplanned failover")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--evidence", type=Path, help="keep the logs of a lab with a wrong end state below this"
    )
    parser.add_argument("--output", type=Path, help="write the page here, of all kills in the file")
    parser.add_argument("--bug", action="append", choices=KILL_BUGS, help="plant this bug; it must be found")
    parser.add_argument("--all-bugs", action="store_true", help="plant each bug in turn")
    options = parser.parse_args()
    bugs = options.bug or (list(KILL_BUGS) if options.all_bugs else [])
    if not bugs and not options.kills:
        parser.error("--kills FILE is needed: the kills are kept there")
    # Also in the background, where a shell has SIGINT ignored: the lab is ended in any case.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    if bugs:
        return _bugs(bugs)
    rounds = [(number, Victim(victim)) for number in range(MOMENTS) for victim in options.victims]
    rounds = rounds[options.first :][: options.rounds]
    deadline = time.monotonic() + options.minutes * 60
    while rounds and time.monotonic() < deadline:
        _in_one_lab(options, rounds, deadline)
    cells = kept(options.kills)
    counted = standing(cells)
    wrong = [cell for cell in counted if cell.problems]
    once = sum(bool(cell.problems) for cell in cells) - len(wrong)
    page = f"{HEAD}{table(counted, ORDER)}\n\n{_foot(counted, wrong, once)}"
    print(page)
    if options.output is not None:
        options.output.write_text(page)
    return 1 if wrong else 0


def _in_one_lab(options: Any, rounds: list[tuple[int, Victim]], deadline: float) -> None:
    """Run rounds, and take them off the list, until they are done or an end state was wrong."""
    with running_lab() as lab, metered(lab) as meter:
        lab.policy(compression=False)
        guest = lab.guest("matrix", rate=200)
        guest.start().close()
        matrix = Matrix(lab, guest, meter, seed=options.seed)
        try:
            while rounds and time.monotonic() < deadline:
                number, victim = rounds.pop(0)
                print(f"{datetime.now(UTC):%H:%M:%S} {victim.value}, moment {number}", file=sys.stderr)
                known = len(matrix.cells)
                try:
                    matrix.round(
                        number, victim, only=options.only, late_s=options.late, shutdown=options.shutdown
                    )
                finally:
                    _keep(options.kills[-1], matrix.cells[known:])
        except Broken as error:
            print(f"   WRONG: {error}", file=sys.stderr)
            if options.evidence is not None:
                _evidence(lab, options.evidence)
        for site in ("primary", "secondary"):
            with suppress(Exception):  # gone, or not here
                guest.domain(site).destroy()


def _bugs(names: Sequence[str]) -> int:
    """A short round with each bug planted, and with the kill at which it must show."""
    kill_matrix.JOB_S = 60  # a job that nobody goes on with need not be awaited longer
    missed = 0
    for name in names:
        with planted(name):
            wrong = _short_round(name)
        missed += wrong is None
        print(f"{name}: {'MISSED' if wrong is None else f'found: {wrong}'[:300]}", flush=True)
    print(f"{missed} missed")
    return int(missed > 0)


def _short_round(name: str) -> Broken | None:
    bug = KILL_BUGS[name]
    with running_lab() as lab, metered(lab) as meter:
        lab.policy(compression=False)
        guest = lab.guest("matrix", rate=100)
        guest.start().close()
        matrix = Matrix(lab, guest, meter)
        lab.protect(guest.name)
        lab.wait_for_points(guest.name, 2)
        try:
            for operation in a_short_round():
                dies = Victim(bug.victim) if operation.name == bug.operation else None
                matrix.operate(operation, dies, bug.moment)
        except Broken as error:
            return error
        finally:
            for site in ("primary", "secondary"):
                with suppress(Exception):  # gone, or not here
                    guest.domain(site).destroy()
    return None


def _keep(path: Path, cells: Sequence[Cell]) -> None:
    commit = subprocess.check_output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], text=True)
    keep(path, cells, commit=commit.strip(), time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    for cell in cells:
        problems = f" {cell.problems}" if cell.problems else ""
        print(
            f"   {cell.operation}: {cell.task}: {cell.outcome}, {cell.seconds} s{problems}", file=sys.stderr
        )


def _evidence(lab: LabStory, folder: Path) -> None:
    target = folder / f"{datetime.now(UTC):%H%M%S}"
    for path in lab.folder.rglob("*"):
        if path.suffix in {".log", ".json"} and path.is_file():
            place = target / path.relative_to(lab.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                shutil.copyfile(path, place)
    with suppress(Exception):  # whatever the service still says
        facts = {"jobs": lab.api.get("/jobs"), "events": lab.api.get("/events"), "item": lab.item("matrix")}
        (target / "facts.json").write_text(json.dumps(facts, indent=1))
    print(f"   evidence: {target}", file=sys.stderr)


def _foot(cells: Sequence[Cell], wrong: Sequence[Cell], once: int) -> str:
    places = {(cell.operation, cell.task, cell.victim) for cell in cells}
    commits = ", ".join(dict.fromkeys(cell.commit for cell in cells))
    return (
        f"{len(cells)} kills in {len(places)} cells, {len(wrong)} wrong end states ({once} more were wrong, and right when they were "
        f"run again after something was mended). {datetime.now(UTC):%Y-%m-%d}, commits {commits}; "
        f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, QEMU without KVM.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
