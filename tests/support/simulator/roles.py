"""Role changes in a story: the orders of the service's workflows, one attempt a step, so that anything happens in between.

Planned and unplanned failovers, roll backs, cancel, commit and reverse, in the order of `service/workflows` and with their
epochs. The service itself is not here: who gives the orders is this module, and it forgets nothing. An order that was cut
is given again; one that failed is given again, or given up where the workflow does that.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from secondsite.node.records import Role
from support.simulator.judge import BrokenPromiseError
from support.simulator.site import ITEM, NAME, Site, content_of
from support.simulator.story import Story

TRIES: Final = 4
TRIES_AT_THE_END: Final = 12


class OrderFailedError(Exception):
    """A node refused an order for good."""


@dataclass(frozen=True, slots=True)
class Order:
    """One order. `must`: it is given until it is carried out; else it is given up after some tries."""

    site: Site
    kind: str
    epoch: int
    args: Mapping[str, Any]
    must: bool = True


Course = Generator[Order, Mapping[str, Any], None]


class Service:
    """What the service knows of the item, and the operation that is under way."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.epoch = 1
        self._course: Course | None = None
        self._order: Order | None = None
        self._tries = 0
        self._orders = 0

    @property
    def busy(self) -> bool:
        """Whether an operation is under way."""
        return self._course is not None

    def begin(self, course: Course) -> str:
        """Begin an operation."""
        self._course = course
        self._next(None)
        return "begins"

    def attempt(self, *, trouble: bool = True) -> str:
        """Give the order that is due once more."""
        order = self._order
        assert order is not None
        results: list[Mapping[str, Any]] = []
        story = self.story

        def give() -> None:
            if order.kind == "target.adopt":
                lay_out_disks(order.site)
            results.append(
                order.site.order(order.kind, order.epoch, order.args, f"job:{self._orders}:{order.kind}")
            )

        said = f"{order.site.letter} {order.kind}: {story.act(order.kind, give, *story.world.sites, trouble=trouble)}"
        self._tries += 1
        if results:
            self._next(results[0])
        elif self._tries >= TRIES and not order.must:
            assert self._course is not None
            try:
                self._take(self._course.throw(OrderFailedError(said)))
            except StopIteration:
                self._course = self._order = None
        return said

    def finish(self) -> None:
        """Bring the operation to its end; nothing goes wrong any more."""
        while self.busy:
            said = self.attempt(trouble=False)
            if self._tries > TRIES_AT_THE_END:
                raise BrokenPromiseError(f"without faults, an order is not carried out: {said}")
            self.story.look()

    def _next(self, result: Mapping[str, Any] | None) -> None:
        assert self._course is not None
        try:
            self._take(next(self._course) if result is None else self._course.send(result))
        except StopIteration:
            self._course = self._order = None

    def _take(self, order: Order) -> None:
        self._order, self._tries = order, 0
        self._orders += 1


# -- the operations ----------------------------------------------------------------------------------------------


def planned(service: Service) -> Course:
    """Move the machine to the other side; nothing is lost."""
    story, epoch = service.story, service.epoch
    source, target = story.source, story.target
    try:
        point = yield Order(source, "source.prepare", epoch, {"shutdown_timeout_s": 5}, must=False)
    except OrderFailedError:
        yield Order(source, "source.release", epoch, {"epoch": epoch})
        return
    if (
        story.world.judge.record.contents[_time_of(story, target, point["sequence"])]
        != _machine(source).now()
    ):
        raise BrokenPromiseError("the last point of a planned failover is not what the disks hold")
    started = yield from _take_over(service, {"sequence": point["sequence"], "digest": point["digest"]})
    if started is None:
        yield Order(source, "source.release", service.epoch, {"epoch": service.epoch})
        return
    yield Order(source, "source.demote", service.epoch, {"new_epoch": service.epoch})
    yield from _after(service, started, cancels=story.chance.random() < 0.35)


def unplanned(service: Service) -> Course:
    """Start the other side from what it has; the source may learn of it late, and runs until then."""
    story = service.story
    source, target = story.source, story.target
    if story.chance.random() < 0.6:
        strike(story)
    points = [point.sequence for point in target.journals.get(ITEM).points()]
    sequence = story.chance.choice((None, None, story.chance.choice(points)))
    started = yield from _take_over(service, {"sequence": sequence, "digest": None})
    if started is None:
        yield Order(source, "source.release", service.epoch, {"epoch": service.epoch})
        return
    cancels = story.chance.random() < 0.5
    if not cancels or story.chance.random() < 0.4:  # else it hears of nothing until it is given the item back
        yield Order(source, "source.demote", service.epoch, {"new_epoch": service.epoch})
    yield from _after(service, started, cancels=cancels)


def strike(story: Story) -> None:
    """The disaster: the link dies amid a cycle, and what was sent hangs somewhere."""
    network = story.world.network
    before, network.mix = network.mix, ("late",)
    bad, story.bad_link = story.bad_link, 0.3
    write(story)
    story.tell(f"   disaster: cycle {story.act('cycle', story.source.cycle, story.source, story.target)}")
    network.mix, story.bad_link = before, bad


def write(story: Story) -> None:
    """The source's guest writes once more."""
    if story.source.machine is not None and story.source.machine_runs():
        story.source.machine.write(story.chance)


def _take_over(
    service: Service, point: Mapping[str, Any]
) -> Generator[Order, Mapping[str, Any], Mapping[str, Any] | None]:
    story, epoch = service.story, service.epoch
    target = story.target
    args = {**point, "new_epoch": epoch + 1, "name": NAME, "networks": {}}
    service.epoch = epoch + 1
    try:
        started = yield Order(target, "target.failover", epoch, args, must=False)
    except OrderFailedError:
        yield Order(target, "target.abandon", epoch + 1, {"epoch": epoch + 1})
        story.world.judge.raised(target, epoch + 1)
        return None
    story.world.judge.raised(target, epoch + 1)
    story.world.judge.pinned["failover"] = started["sequence"]
    boot_replica(story, target)
    return started


def _after(service: Service, started: Mapping[str, Any], *, cancels: bool) -> Course:
    """After a takeover: the machine runs at the target for a while; then cancel, or commit and reverse."""
    story, epoch = service.story, service.epoch
    source, target, judge = story.source, story.target, story.world.judge
    if cancels:
        yield Order(target, "target.abandon", epoch + 1, {"epoch": epoch, "next_epoch": epoch + 1})
        service.epoch = epoch + 1
        target.machine = None
        judge.raised(target, epoch + 1)
        judge.pinned.pop("failover", None)
        while story.world.network.late and story.chance.random() < 0.8:
            story.world.network.deliver_late()
        yield Order(source, "source.release", epoch + 1, {"epoch": epoch + 1, "start": True})
        return
    highest = max(started["sequence"], *(point.sequence for point in target.journals.get(ITEM).points()))
    with target.running():
        for owner in judge.pinned:
            target.journals.get(ITEM).unpin(owner)
    judge.begin_journal()
    yield Order(target, "target.commit", epoch, {})
    policy = asdict(story.world.geometry.policy)
    adopted = yield Order(
        source, "target.adopt", epoch, {"source_node": target.node, "policy": policy, "after": highest}
    )
    source.machine = None
    if adopted["base"] == "diverged":
        judge.pinned["diverged"] = adopted["sequence"]
        judge.due[adopted["sequence"]] = _time_of(story, source, adopted["sequence"])
    there = {"node": source.node, "host": "127.0.0.1", "port": 1}
    yield Order(target, "source.start", epoch, {"resume": True, "target": there, "policy": policy})
    story.source, story.target = target, source


# -- machines ----------------------------------------------------------------------------------------------------


def boot_replica(story: Story, site: Site) -> None:
    """The replica's guest begins with what its point holds, which a view must say as well."""
    record = site.items.get(ITEM)
    assert record.failover is not None
    with site.running(), site.journals.get(ITEM).view(record.failover.sequence, purpose="boot") as view:
        contents = story.world.judge.record.contents[view.manifest.time]
        story.world.judge.compare(view, contents)
    sizes = {disk: len(data) for disk, data in contents.items()}
    paths = {
        disk.key: disk.path for disk in site.fabric.find(record.failover.vm).disks if disk.path is not None
    }
    site.machine = site.make_machine(sizes, paths, record.failover.vm)
    site.machine.load(contents, record.failover.checkpoint)


def lay_out_disks(site: Site) -> None:
    """Before its images become a journal's base: put what the machine's disks hold where the base will read it."""
    if site.machine is None or site.journals.exists(ITEM):
        return
    for disk, data in site.machine.now().items():
        content: Path = content_of(site.machine.images[disk])
        content.write_bytes(data)
        site.disk.note_durable(content)


def _machine(site: Site) -> Any:
    assert site.machine is not None
    return site.machine


def _time_of(story: Story, site: Site, sequence: int) -> Any:
    times = [point.time for point in site.journals.get(ITEM).points() if point.sequence == sequence]
    if not times:
        raise BrokenPromiseError(f"point {sequence}, which {site.letter} has told of, is not offered")
    return times[0]


# -- steps -------------------------------------------------------------------------------------------------------


def change_roles(story: Story) -> str | None:
    """Begin an operation, or give its next order."""
    service = service_of(story)
    if service.busy:
        return service.attempt()
    if not story.is_replicating() or not story.has_journal() or story.target.dead:
        return None
    course = story.chance.choice((planned, planned, unplanned))
    return f"{course.__name__} {service.begin(course(service))}"


def service_of(story: Story) -> Service:
    """Return the story's service."""
    if not isinstance(story.service, Service):
        story.service = Service(story)
    return story.service


def check_stepped_down(story: Story) -> None:
    """When no operation is under way, a side that stepped down runs nothing."""
    for site in story.world.sites:
        record = site.record
        if record is not None and record.role is Role.STANDBY and site.machine_runs():
            raise BrokenPromiseError(f"{site.letter} stepped down, and its machine runs")
