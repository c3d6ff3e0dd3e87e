"""What the kills of the matrix led to: kept as lines of JSON, so that several runs add up, and shown as one table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from support.kill_victims import Victim

NOT_HIT = "not hit"


@dataclass
class Cell:
    """What became of one operation with one kill in it. `moment`: 0, accepted; else the number of the task, from 1."""

    operation: str
    moment: int
    task: str
    victim: Victim
    outcome: str
    seconds: float
    problems: list[str] = field(default_factory=list)
    commit: str = ""
    time: str = ""
    changed: int = 0
    """Bytes that differ between the points that were sealed meanwhile."""
    resent: int = 0
    """Bytes on the wire beyond those."""


def keep(path: Path, cells: Iterable[Cell], *, commit: str, time: str) -> None:
    """Add the cells to the file."""
    with path.open("a") as file:
        for cell in cells:
            file.write(json.dumps({**asdict(cell), "commit": commit, "time": time}) + "\n")


def kept(paths: Iterable[Path]) -> list[Cell]:
    """Return the cells of the files, in their order."""
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return [Cell(**{**fields, "victim": Victim(fields["victim"])}) for fields in map(json.loads, lines)]


def standing(cells: Iterable[Cell]) -> list[Cell]:
    """Return the kills that count: those that hit, and whatever ended wrong. A place of the table that was wrong counts anew from the first run
    under another commit on, since it was run again because something was mended.
    """
    places: dict[tuple[str, str, Victim], list[Cell]] = {}
    for cell in cells:
        if cell.outcome == NOT_HIT and not cell.problems:
            continue
        place = places.setdefault((cell.operation, cell.task, cell.victim), [])
        if any(old.problems and old.commit != cell.commit for old in place):
            place.clear()
        place.append(cell)
    return [cell for place in places.values() for cell in place]


def table(cells: Sequence[Cell], order: Sequence[str]) -> str:
    """The cells as a table of Markdown: a row per operation and task, a column per victim."""
    rows: dict[tuple[str, str], dict[Victim, list[Cell]]] = {}
    for cell in sorted(cells, key=lambda cell: (order.index(cell.operation), cell.moment)):
        rows.setdefault((cell.operation, cell.task), {}).setdefault(cell.victim, []).append(cell)
    lines = [
        "| operation | when | " + " | ".join(victim.value for victim in Victim) + " |",
        "|---|---|" + "---|" * len(Victim),
    ]
    lines += [
        f"| {operation} | {task} | " + " | ".join(_text(found.get(victim, [])) for victim in Victim) + " |"
        for (operation, task), found in rows.items()
    ]
    return "\n".join(lines)


def _text(cells: Sequence[Cell]) -> str:
    wrong = [f"**WRONG**: {'; '.join(cell.problems)}" for cell in cells if cell.problems]
    right = Counter(cell.outcome for cell in cells if not cell.problems)
    return "; ".join([*wrong, *(f"{outcome} {number}" for outcome, number in right.items())])
