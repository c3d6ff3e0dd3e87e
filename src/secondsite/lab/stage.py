"""What a story on a lab is told with: commands, points, consoles, disks, and claims that hold or do not.

The story speaks through the command `secondsite`, as a newcomer would type it. What it claims is judged by what shares
no code with the product: `records`, `filesystem` and `console`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from secondsite.errors import SecondSiteError, TimeoutExceededError
from secondsite.lab import sites
from secondsite.lab.console import ConsoleReader
from secondsite.lab.filesystem import check_filesystem
from secondsite.lab.hypervisor import Hypervisor
from secondsite.lab.records import RecordCheck, check_records
from secondsite.model.units import BLOCK, MIB

NAME: Final = "demo-1"
DISKS: Final = ("vda", "vdb")

Say = Callable[[str], None]


@dataclass
class Claims:
    """What was claimed, whether it held, and what was measured."""

    held: list[tuple[str, bool, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, claim: str, holds: bool, seen: object = "") -> None:
        """Note a claim and whether it holds."""
        self.held.append((claim, bool(holds), str(seen)))

    @property
    def failed(self) -> list[str]:
        """The claims that do not hold, with what was seen instead."""
        return [f"{claim}: {seen}" for claim, holds, seen in self.held if not holds]


class Stage:
    """The lab in `folder`, the machine NAME on it, and the claims made so far. `say` prints a line."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder
        self.say = say
        self.claims = Claims()
        self.facts: dict[str, Any] = {}
        self.hypervisors: dict[str, Hypervisor] = {}

    def set_up(self) -> None:
        """Start the lab."""
        self.facts = sites.up(self.folder, lambda text: self.say(f"   {text}"))
        self.lab = sites.Lab.load(self.folder)
        self.hypervisors = {site: self.lab.hypervisor(site) for site in sites.SITES}

    def judge(self, what: str, disks: Sequence[Path]) -> RecordCheck:
        """Check the guest's records over its disks, and the file system of the first one; return what was found."""
        found = check_records(list(disks))
        self.claims.check(f"{what}: a strict prefix over both disks", found.ok, "; ".join(found.problems[:2]))
        system = check_filesystem(disks[0])
        self.claims.check(f"{what}: its file system is clean", system.ok, "; ".join(system.problems[:2]))
        return found

    def chapter(self, title: str, tell: Callable[[], None]) -> None:
        """Tell a part of the story under its title."""
        self.say(f"\n== {title}")
        tell()

    def cli(self, *arguments: str) -> Any:
        """Run a command of the CLI with --json; its progress goes to the terminal."""
        if arguments[1] not in {"list", "show", "protectable"}:
            self.say(f"   $ secondsite {' '.join(arguments)}")
        command = [sys.executable, "-m", "secondsite", "--config", self.facts["config"], *arguments, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
        if done.returncode:
            raise SecondSiteError(
                f"secondsite {' '.join(arguments)} failed with exit code {done.returncode}{_reason(done.stdout)}"
            )
        return json.loads(done.stdout)

    def extract(self, site: str, sequence: int) -> list[Path]:
        """Get a point's disks with the stand-alone command, which knows nothing but the journal's folder."""
        folder = self.folder / f"point-{site}-{sequence}"
        disks = [folder / f"{disk}.raw" for disk in DISKS]
        if folder.exists():
            return disks
        journal = [str(self.journal(site)), "--sequence", str(sequence)]
        self.cli("journal", "extract", *journal, "--output", str(folder))
        return disks

    def journal(self, site: str) -> Path:
        """The folder of the item's journal at a site."""
        return Path(self.facts["sites"][site]["journals"]) / str(self.item()["id"])

    def item(self) -> Mapping[str, Any]:
        """What `item show` says."""
        item: Mapping[str, Any] = self.cli("item", "show", NAME)
        return item

    def counters(self, item: Mapping[str, Any], side: str = "source") -> Mapping[str, Any]:
        """The counters that a side's node reported."""
        report = item["replication"][side] or {}
        counters: Mapping[str, Any] = report.get("counters", {})
        return counters

    def cycle(self, sequence: int) -> Mapping[str, Any] | None:
        """Return the source's figures of the cycle that sealed the point, once it is the last or gone by."""
        report = self.item()["replication"]["source"] or {}
        for cycle in report.get("cycles", []):
            if cycle["sequence"] == sequence:
                found: Mapping[str, Any] = cycle
                return found
        return None

    def images(self, site: str) -> list[Path]:
        """The images that the machine's definition at a site names."""
        vms = self.hypervisors[site].connect()
        try:
            root = ET.fromstring(vms.lookupByName(NAME).XMLDesc())  # noqa: S314 - our own libvirt's
            found = {
                disk.find("target").get("dev"): disk.find("source").get("file")  # type: ignore[union-attr]
                for disk in root.iter("disk")
                if disk.find("source") is not None
            }
        finally:
            vms.close()
        return [Path(str(found[disk])) for disk in DISKS]

    @contextmanager
    def console(self, site: str, name: str) -> Iterator[ConsoleReader]:
        """A machine's console."""
        with ConsoleReader(self.hypervisors[site], name) as console:
            yield console

    def wait(self, holds: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
        """Return what `holds` returns once it is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := holds()):
            if time.monotonic() > deadline:
                raise TimeoutExceededError(f"{what}: nothing in {timeout_s:.0f} s")
            time.sleep(0.2)
        return value


def _reason(output: str) -> str:
    """Return what a job that failed says about itself; a command's own error is on the terminal already."""
    try:
        error = json.loads(output)["error"]
        return f": [{error['code']}] {error['message']}"
    except (ValueError, KeyError, TypeError):
        return ""


def changed_bytes(before: Sequence[Path], after: Sequence[Path]) -> int:
    """Return how many bytes, in 4 KiB blocks, differ between two copies of the same disks."""
    changed = 0
    for old, new in zip(before, after, strict=True):
        with old.open("rb") as a, new.open("rb") as b:
            while (left := a.read(8 * MIB)) or b.peek(1):
                right = b.read(8 * MIB)
                if left != right:
                    x = np.frombuffer(left, np.uint8).reshape(-1, BLOCK)
                    y = np.frombuffer(right, np.uint8).reshape(-1, BLOCK)
                    changed += int((x != y).any(axis=1).sum()) * BLOCK
    return changed


def mib(count: float) -> str:
    """Return a number of bytes as a person reads it."""
    return f"{count / MIB:.1f} MiB"
