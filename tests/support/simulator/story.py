"""A story: what happens to the two sites, step by step, drawn from the seed. After each step the judge looks.

A step is an act of the world (writes, a crash, a clock that jumps, a request that arrives late) or of the product (a cycle,
retention, an order of the service), the latter perhaps with faults: the network's, or one fault of one disk, counted in
calls so that it may fall on any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from secondsite.errors import SecondSiteError
from secondsite.node.records import Role
from support.power import PowerCutError
from support.simulator.disk import DiskPlan
from support.simulator.judge import BrokenPromiseError
from support.simulator.site import ITEM, Site
from support.simulator.world import World


class Operations(Protocol):
    """What of role changes a story has to end."""

    def finish(self) -> None:
        """Bring the operation that is under way to its end, without faults."""


Step = Callable[["Story"], str | None]
SETTLING_MAX: Final = 8
"""So many cycles without faults must be enough to converge."""
QUIET: Final = frozenset({"write", "grow", "tracking", "clock", "time", "link", "flip"})
"""Acts of the world that change nothing on the nodes' disks."""
FAILURES: Final = (SecondSiteError, OSError)


class Story:
    """See the module's docstring. `lines`: what happened, one line a step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.stream("story")
        self.lines: list[str] = []
        self.source, self.target = world.sites
        self.service: Operations | None = None
        self.bad_link = 0.0
        self.number = 0
        self._usual: dict[str, int] = {}

    # -- helpers of steps ----------------------------------------------------------------------------------

    def troubled(self) -> bool:
        """Whether this step meets a fault."""
        return self.chance.random() < self.world.geometry.trouble

    def act(self, name: str, act: Callable[[], Any], *sites: Site, trouble: bool = True) -> str:
        """Let the product do something that may meet faults on the disks of `sites` or in the network."""
        world, faulty = self.world, None
        for site in world.sites:
            site.disk.begin(DiskPlan())
        if trouble and sites and self.troubled():
            faulty = self.chance.choice(sites)
            faulty.disk.begin(self._plan(f"{name} {faulty.letter}"))
        fates = self.chance.choice((0.05, 0.3, 0.6)) if trouble and self.troubled() else 0.0
        if trouble:
            fates = max(fates, self.bad_link)
        counted = {site: site.disk for site in sites}
        try:
            with world.network.troubled(fates):
                act()
            result = "done"
        except PowerCutError:
            result = "cut"
        except FAILURES as error:
            code = error.code if isinstance(error, SecondSiteError) else type(error).__name__
            result = f"failed: {code}"
        for site, disk in counted.items():
            if not disk.life.ended:
                key = f"{name} {site.letter}"
                self._usual[key] = max(disk.steps, self._usual.get(key, 0) * 3 // 4)
            if disk.failed:
                result += f" ({', '.join(disk.failed)})"
                disk.failed.clear()
            disk.begin(DiskPlan())
        self.revive()
        return result

    def _plan(self, key: str) -> DiskPlan:
        steps = max(8, self._usual.get(key, 60))
        at = self.chance.randrange(steps + steps // 8)
        kind = self.chance.choice(("cut", "cut", "cut", "full", "error", "read"))
        if kind == "cut":
            return DiskPlan(cut_at=at)
        if kind == "full":
            return DiskPlan(full_from=at, full_for=self.chance.choice((1, 5, 1 << 30)))
        if kind == "error":
            return DiskPlan(error_at=at)
        return DiskPlan(read_error_at=self.chance.randrange(40))

    def revive(self) -> None:
        """Start what has died."""
        for site in self.world.sites:
            if site.dead or site.disk.life.ended:
                self.crash(site, power=self.chance.random() < 0.7)

    def crash(self, site: Site, *, power: bool) -> None:
        """The node ends and begins again, perhaps cut again while it begins."""
        for _ in range(3):
            if power and self.world.judge.views_of is site:
                self.world.judge.close_views()
            site.restart_disk(power=power)
            self.world.judge.check_folder(site)
            site.disk.begin(self._plan(f"boot {site.letter}") if self.troubled() else DiskPlan())
            try:
                site.boot()
            except PowerCutError:
                power = self.chance.random() < 0.7
                continue
            except FAILURES:  # the service manager starts it again
                site.disk.life.ended = True
                power = False
                continue
            finally:
                site.disk.failed.clear()
            break
        else:
            site.restart_disk(power=False)
            site.disk.begin(DiskPlan())
            site.boot()
        site.disk.begin(DiskPlan())
        site.tend()

    # -- the course ----------------------------------------------------------------------------------------

    def tell(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    def run_steps(self, steps: int, choose: Callable[[Story], tuple[str, Step]]) -> None:
        """Run so many steps."""
        for _ in range(steps):
            number, self.number = self.number, self.number + 1
            name, step = choose(self)
            said = step(self)
            if said is None:
                continue
            self.tell(f"{number}: {name}: {said}")
            if name not in QUIET:
                self.look()

    def look(self) -> None:
        """Have the judge look."""
        for site in self.world.sites:
            site.disk.release_gone()
        self.world.judge.check()

    def settle(self) -> None:
        """No more faults: within a few cycles a new point seals and equals the source's disks."""
        world = self.world
        world.network.down = False
        while world.network.late:
            world.network.deliver_late()
            self.revive()
        if self.service is not None:
            self.service.finish()
        said = "nothing was tried"
        for _ in range(SETTLING_MAX):
            said = self.act("cycle", self.source.cycle, trouble=False)
            if said == "done":
                break
        else:
            raise BrokenPromiseError(f"without faults, {SETTLING_MAX} cycles do not seal a point: {said}")
        self.look()
        world.judge.check_converged(self.source, self.target)
        self.tell("converged")

    def is_replicating(self) -> bool:
        """Whether cycles run now."""
        return self.source.role is Role.SOURCE and self.source.replicators.running

    def has_journal(self) -> bool:
        """Whether the target has a journal with a point."""
        return self.target.role is Role.TARGET and bool(self.target.journals.get(ITEM).points())
