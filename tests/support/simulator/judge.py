"""What must hold after every step of a story, whatever happened.

1. Every point that a journal offers reads back, by a view that compares and by one that does not, as what the machine's
   disks held when the point was taken.
2. A point that was acknowledged is offered as long as the policy keeps it, or somebody pins it.
3. Of each epoch at most one side is writable: its machine runs, and its node takes the item for its own.
4. Views that are open go on reading their point.

The judge shares no code with the journal: it has the contents by the time of the snapshot. Which points retention may give
up it takes from the policy by a rule of its own; only for a ladder (thinning) it asks `points_to_keep`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondsite.errors import SecondSiteError, UnavailableError
from secondsite.journal import Journal, OpenBase, PointInfo, View
from secondsite.model.ids import Epoch
from secondsite.model.manifest import Manifest
from secondsite.model.policy import Policy
from secondsite.model.retention import PointAge, points_to_keep
from secondsite.node.records import Role
from support.simulator.machine import Contents, Record
from support.simulator.site import ITEM, Site

if TYPE_CHECKING:
    from support.simulator.world import World


class BrokenPromiseError(Exception):
    """A promise of the product does not hold."""


class Judge:
    """See the module's docstring."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.record = Record()
        self.due: dict[int, datetime] = {}
        """Sequences that must be offered, with their times: acknowledged, and not given up by retention since."""
        self.pinned: dict[str, int] = {}
        self.views: list[View] = []
        self.writable: dict[Epoch, str] = {}
        self.points_read = 0
        self.views_of: Site | None = None
        self._least: dict[str, int] = {}
        self._broken: list[str] = []

    # -- what is told --------------------------------------------------------------------------------------

    def acknowledged(self, site: Site, manifest: Manifest) -> None:
        """A node has answered that it holds this point."""
        if manifest.epoch < self._least.get(site.letter, 0):
            self._broken.append(
                f"{site.letter} took point {manifest.sequence} of the stale epoch {manifest.epoch}"
            )
        self.due[manifest.sequence] = manifest.time

    def raised(self, site: Site, epoch: int) -> None:
        """A node has answered that nothing older than `epoch` gets in any more."""
        self._least[site.letter] = epoch

    def begin_journal(self) -> None:
        """A new journal: nothing is owed yet."""
        self.close_views()
        self.due, self.pinned = {}, {}

    def close_views(self) -> None:
        """Readers end."""
        for view in self.views:
            view.close()
        self.views = []

    def maintaining(self, offered: list[Any], policy: Policy, now: datetime) -> None:
        """Retention is about to be applied to the points `offered`: what it may give up is owed no longer."""
        keeps = set(self.pinned.values()) | {view.sequence for view in self.views}
        if policy.keep_all_hours is not None:
            ages = [PointAge(point.sequence, point.time, point.consistency) for point in offered]
            keeps |= set(points_to_keep(ages, policy, now))
        else:
            keeps |= _kept(offered, policy, now)
        self.due = {sequence: time for sequence, time in self.due.items() if sequence in keeps}

    # -- judging -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All of it, of both sides."""
        if self._broken:
            raise BrokenPromiseError("; ".join(self._broken))
        for site in self._world.sites:
            if not site.dead and site.journals.exists(ITEM):
                with site.running():
                    self._check_journal(site)
        self._check_views()
        self._check_sides()

    def check_folder(self, site: Site) -> None:
        """What a reader finds between a crash and the next start of the node."""
        folder = site.folders.journal(ITEM)
        if (folder / "journal.json").exists():
            with Journal.open(folder, writable=False, open_base=site.open_base) as journal:
                self.check_points(journal)

    def _check_journal(self, site: Site) -> None:
        journal = site.journals.get(ITEM)
        offered = self.check_points(journal)
        if site.role is Role.TARGET or site.role is Role.ACTIVE:
            if journal.epoch < self._least.get(site.letter, 0):
                raise BrokenPromiseError(f"{site.letter} forgot an epoch that it had answered to have")
            lost = sorted(sequence for sequence, time in self.due.items() if offered.get(sequence) != time)
            if lost:
                raise BrokenPromiseError(
                    f"acknowledged points are not offered: {lost}, only {sorted(offered)}"
                )

    def check_points(self, journal: Journal) -> dict[int, datetime]:
        """Every point that is offered reads back right; return their sequences and times."""
        points = journal.points()
        for point in points:
            expected = self.record.contents.get(point.time)
            if expected is None:
                raise BrokenPromiseError(f"point {point.sequence} has a time of no snapshot: {point.time}")
            try:
                with journal.view(point.sequence, purpose="judge", verify=True) as view:
                    self.compare(view, expected)
            except UnavailableError:  # a fold was cut: it is compared by the next writer
                pass
            except SecondSiteError as error:
                raise BrokenPromiseError(
                    f"point {point.sequence} cannot be read: {error.to_dict()}"
                ) from error
            with journal.view(point.sequence, purpose="judge") as view:
                self.compare(view, expected)
        return {point.sequence: point.time for point in points}

    def compare(self, view: View, expected: Contents) -> None:
        """Every byte, and what is said to be zero."""
        self.points_read += 1
        if set(view.disks) != set(expected):
            raise BrokenPromiseError(f"point {view.sequence} has other disks")
        for key, disk in view.disks.items():
            held = disk.read(0, disk.size)
            if held != expected[key]:
                raise BrokenPromiseError(
                    f"point {view.sequence}, disk {key}: {_difference(held, expected[key])}"
                )
            for extent in disk.extents(0, disk.size):
                if extent.zero and held[extent.offset : extent.offset + extent.length] != bytes(
                    extent.length
                ):
                    raise BrokenPromiseError(
                        f"point {view.sequence}, disk {key}: {extent.offset} is said to be zero"
                    )

    def _check_views(self) -> None:
        for view in self.views:
            if self._world.stream("readers").random() < 0.1:  # one that has not looked yet has no file open
                self.check_view(view)

    def check_view(self, view: View) -> None:
        """A reader looks at all of its point."""
        try:
            self.compare(view, self.record.contents[view.manifest.time])
        except SecondSiteError as error:
            raise BrokenPromiseError(
                f"the open view of point {view.sequence} broke: {error.to_dict()}"
            ) from error

    def _check_sides(self) -> None:
        for site in self._world.sites:
            record = None if site.dead else site.record
            if record is None or record.role not in {Role.SOURCE, Role.ACTIVE} or not site.machine_runs():
                continue
            first = self.writable.setdefault(record.epoch, site.letter)
            if first != site.letter:
                raise BrokenPromiseError(f"both sides are writable under epoch {record.epoch}")

    # -- damage --------------------------------------------------------------------------------------------

    def check_flipped(self, folder: Path, open_base: OpenBase) -> str:
        """A journal with a flipped bit: no point reads wrong where all is compared. Return how it was noticed, if it was."""
        try:
            with Journal.open(folder, writable=False, open_base=open_base) as journal:
                refused = sum(self._is_refused(journal, point) for point in journal.points())
                found = [str(finding) for finding in journal.verify()]
        except SecondSiteError as error:
            return f"refused as a whole, {error.code}"
        if refused and not found:
            raise BrokenPromiseError("a point is refused, and the scrub finds nothing")
        return f"{refused} points refused, {len(found)} findings"

    def _is_refused(self, journal: Journal, point: PointInfo) -> bool:
        expected = self.record.contents.get(point.time)
        if expected is None:
            raise BrokenPromiseError("a flipped bit made a point of another time")
        try:
            with journal.view(point.sequence, purpose="judge", verify=True) as view:
                self.compare(view, expected)
        except SecondSiteError:
            return True
        return False

    # -- at the end ----------------------------------------------------------------------------------------

    def check_converged(self, source: Site, target: Site) -> None:
        """The last point is what the source holds now, and nothing of the journal is damaged."""
        assert source.machine is not None
        with target.running():
            journal = target.journals.get(ITEM)
            last = journal.status().last
            if last is None or self.record.contents[last.time] != source.machine.now():
                raise BrokenPromiseError("after all faults ended, the last point is not the source's disks")
            findings = [str(finding) for finding in journal.verify()]
            if findings:
                raise BrokenPromiseError(f"the scrub accuses a journal that nobody damaged: {findings[:3]}")


def _kept(offered: list[Any], policy: Policy, now: datetime) -> set[int]:
    """Which points a policy without a ladder keeps: the younger ones, at most so many, and always two."""
    if not offered:
        return set()
    now = min(now, offered[-1].time + timedelta(hours=1))
    young = [
        point.sequence
        for position, point in enumerate(offered)
        if position >= len(offered) - 2
        or any(
            other.time >= now - timedelta(hours=policy.retention_hours) for other in offered[: position + 1]
        )
    ]
    return set(young[-policy.retention_points :])


def _difference(held: bytes, expected: bytes) -> str:
    if len(held) != len(expected):
        return f"{len(held)} bytes instead of {len(expected)}"
    wrong = [at for at in range(0, len(held), 512) if held[at : at + 512] != expected[at : at + 512]]
    return f"{len(wrong)} sectors are wrong, the first at {wrong[0]}"
