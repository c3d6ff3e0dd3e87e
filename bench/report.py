"""The rows of the table that `make bench` ends with: our figure, the peer's of the same run, their ratio, and the bound."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROWS_VARIABLE = "SECONDSITE_BENCH_ROWS"
"""Names the file to which each row is appended as a line of JSON, for the table at the end."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ours` and `peer` with their units ("812 MB/s"); `peer` is "" where nothing is compared with.

    `value` is what the bound is about: the ratio of ours to the peer's, or our figure itself where there is no peer.
    `least`: whether the bound is a lower one (a rate) or an upper one (a time, a size).
    """

    figure: str
    conditions: str
    ours: str
    peer: str
    value: float
    unit: str  # "x" for a ratio
    bound: float
    least: bool

    @property
    def reached(self) -> bool:
        """Whether the figure is within its bound."""
        return self.value >= self.bound if self.least else self.value <= self.bound

    @property
    def to_reach(self) -> str:
        """The bound in words."""
        return f"{'>=' if self.least else '<='} {self.bound:g} {self.unit}"


def say(row: Row) -> None:
    """Print the row, and keep it for the table if this is a part of a whole run."""
    beside = f" | peer {row.peer}" if row.peer else ""
    verdict = "reached" if row.reached else "NOT REACHED"
    print(
        f"{row.figure} ({row.conditions}): {row.ours}{beside} | {row.value:.3g} {row.unit}, {row.to_reach}: {verdict}",
        flush=True,
    )
    if path := os.environ.get(ROWS_VARIABLE):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, with the date and the machine."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}",
        "",
        "| figure | conditions | ours | peer | measured | to reach | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.figure} | {row.conditions} | {row.ours} | {row.peer or '-'} | {row.value:.3g} {row.unit} | {row.to_reach} |"
        f" {'reached' if row.reached else '**not reached**'} |"
        for row in rows
    ]
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on: processor, cores, memory, kernel."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GiB, Linux {platform.release()}"
