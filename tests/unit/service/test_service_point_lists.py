"""What a real reporter tells of points makes the service's lists the journals', whatever happens to reports in between."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import InvalidInputError
from secondsite.model.ids import ItemId
from secondsite.node import point_lists
from secondsite.service.context import Actor
from secondsite.service.store import items, points
from secondsite.service.store.database import Store, Transaction
from secondsite.service.store.records import Item
from secondsite.service.usecases import protect, reports
from secondsite.service.vocabulary import Role
from secondsite.ship.routing import JSON_BODY_MAX
from support.reported_points import Site
from support.service_node import machine
from support.service_world import World

ME = Actor("test", Role.CONTRIBUTOR)
NAMES = ("db-1", "mail")
WAYS = ("arrives", "arrives", "lost", "unanswered", "twice", "late")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.two_sites()
    made.inventory("host-ams", *(machine(name) for name in NAMES))
    for name in NAMES:
        made.run(protect.protect(made.ctx, ME, name).id)
    yield made
    made.close()


@dataclass
class SlowStore:
    """A store whose writers wait before their turn."""

    store: Store
    wait: Callable[[], None]

    def transaction(self) -> AbstractContextManager[Transaction]:
        """A transaction, after the wait."""
        self.wait()
        return self.store.transaction()


@dataclass
class Link:
    """A node's reports on their way to the service. The journals are the site's lists."""

    world: World
    site: Site
    largest: int = 0
    made: list[dict[str, Any]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None
    """What happens between a report that is late and the next one."""

    def report(self, way: str = "arrives") -> None:
        """Send a report: it arrives, is lost, arrives and only its answer is lost, arrives twice, or after the next one."""
        self.make()
        for _ in range({"arrives": 1, "lost": 0, "unanswered": 1, "twice": 2, "late": 0}[way]):
            self.take(self.made[-1])
        if way in {"lost", "unanswered", "late"}:
            self.site.reporter.forget_sent()
        if way == "late":
            self.meanwhile()
            self.report()
            self.take(self.made[-2])

    def make(self) -> dict[str, Any]:
        """Return a report as it comes out of the line."""
        body = json.dumps(self.site.reporter.make(with_inventory=False))
        self.largest = max(self.largest, len(body))
        self.made.append(json.loads(body))
        return self.made[-1]

    def take(self, body: dict[str, Any], wait: Callable[[], None] = lambda: None) -> None:
        """The service takes a report, and waits between its arrival and its turn to be written."""
        node = self.item(NAMES[0]).target_node_id
        store: Any = SlowStore(self.world.store, wait)
        reports.take_report(replace(self.world.ctx, store=store), node, body)

    def item(self, name: str) -> Item:
        """Return the service's item."""
        with self.world.store.reading() as tx:
            return items.get(tx, name)

    def known(self) -> dict[str, dict[int, str]]:
        """Return what the service knows of each item."""
        with self.world.store.reading() as tx:
            return {item: points.digests(tx, ItemId(item)) for item in self.site.lists}


@pytest.fixture
def link(world: World) -> Link:
    made = Link(world, Site({}))
    made.site.lists = {made.item(name).id: {} for name in NAMES}
    return made


class Journals:
    """What happens to journals: points are sealed, merged into the next one, and given up."""

    def __init__(self, chance: random.Random, lists: dict[str, dict[int, str]]) -> None:
        self.chance = chance
        self.lists = lists
        self.serial = 0

    def fill(self, count: int) -> None:
        """Points as there may be when the node starts."""
        for held in self.lists.values():
            held.update({number: self._digest() for number in range(2, count) if self.chance.random() < 0.8})

    def go_on(self) -> None:
        """Something happens to each."""
        for held in self.lists.values():
            for _ in range(self.chance.randrange(4)):
                held[max(held, default=1) + 1] = self._digest()
            if len(held) > 4 and self.chance.random() < 0.6:
                first = self.chance.choice([len(held) - 2, self.chance.randrange(len(held) - 1)])
                merged, into = list(held)[first : first + 2]
                del held[merged]
                held[into] = self._digest()
            if len(held) > 30 or (len(held) > 3 and self.chance.random() < 0.2):
                del held[min(held)]

    def _digest(self) -> str:
        self.serial += 1
        return f"{self.serial:064x}"


@pytest.mark.parametrize("seed", range(6))
def test_the_service_ends_with_the_journals_lists_however_reports_fare(
    link: Link, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(point_lists, "WHOLE_POINTS", 5)
    monkeypatch.setattr(point_lists, "LEAST_POINTS", 2)
    chance = random.Random(seed)
    journals = Journals(chance, link.site.lists)
    journals.fill(40)
    link.meanwhile = journals.go_on
    for _ in range(50):
        journals.go_on()
        if chance.random() < 0.05:
            link.site.restart()
        link.site.now += timedelta(seconds=chance.choice([1, 5]))
        link.report(chance.choice(WAYS))
    # No time passes from here: that the lists are told anew some day is not what makes them right.
    for _ in range(40):
        link.report()
    assert link.known() == link.site.lists


@pytest.mark.every_step
def test_a_list_of_70_000_points_is_told_in_small_reports_and_known_exactly(link: Link) -> None:
    long, short = link.site.lists.values()
    long |= {number: f"{number:064x}" for number in range(2, 70_002) if number != 500}
    short |= {2: "2" * 64}
    phantoms = {number: {"sequence": number, "time": "2026-11-23T05:00:00+00:00"} for number in (500, 80_000)}
    first = next(iter(link.site.lists))
    link.take({"points": {first: {"points": list(phantoms.values()), "complete": False}}})
    for way in ("arrives", "lost", "arrives", "unanswered"):
        link.report(way)
    assert link.known()[link.item(NAMES[1]).id] == short
    newest = link.known()[first]
    assert {70_001, 70_000, 69_999} <= newest.keys()
    assert 80_000 not in newest
    del long[2], long[35_000], long[69_990]
    long |= {35_001: "a" * 64, 69_991: "b" * 64, 70_002: "c" * 64}
    count = 0
    while link.made[-1]["points"]:
        link.report()
        count += 1
    assert link.known() == link.site.lists
    assert link.largest < JSON_BODY_MAX // 8
    assert count < 30


def test_points_beside_a_slice_are_neither_forgotten_nor_doubled(link: Link) -> None:
    item = link.item(NAMES[0])

    def point(sequence: int, digest: str = "a") -> dict[str, Any]:
        return {"sequence": sequence, "time": "2026-11-23T05:00:00+00:00", "digest": digest * 64}

    def told(**entry: Any) -> list[tuple[int, str]]:
        link.take({"points": {item.id: entry}})
        with link.world.store.reading() as tx:
            return [(number, digest[:1]) for number, digest in sorted(points.digests(tx, item.id).items())]

    told(points=[point(number) for number in range(1, 8)], complete=True)
    entry = {"points": [point(3), point(6, "b"), point(8)], "gone": [7], "complete": True, "from": 3, "to": 4}
    left = [(1, "a"), (2, "a"), (3, "a"), (5, "a"), (6, "b"), (8, "a")]
    assert told(**entry) == left
    assert told(**entry) == left
    assert told(points=[], complete=True, to=2) == left[2:]
    assert told(**{"points": [], "complete": True, "from": 6}) == left[2:4]


def test_a_report_that_waits_while_the_next_one_is_taken_changes_nothing(link: Link) -> None:
    """The node gave it up after 15 seconds; the service has patience for more with a busy database."""
    item = link.item(NAMES[0]).id
    link.site.lists = {item: {6: "a", 7: "b"}}
    link.report()
    link.site.lists[item] = {6: "a", 7: "b", 8: "c"}
    entered, given_up = threading.Event(), threading.Event()

    def wait_for_its_turn() -> None:
        entered.set()
        given_up.wait(10)

    first = link.make()
    thread = threading.Thread(target=link.take, args=(first, wait_for_its_turn))
    thread.start()
    assert entered.wait(10)
    link.site.reporter.forget_sent()
    link.site.lists[item] = {6: "a", 7: "b", 9: "8 and 9"}
    link.report()
    given_up.set()
    thread.join(10)
    assert link.known() == link.site.lists
    link.site.restart()
    del link.site.lists[item][6]
    link.report()
    assert link.known() == link.site.lists  # the numbers of a new run begin anew


@pytest.mark.parametrize(
    "number", [3, {"run": 1, "number": 1}, {"run": "a", "number": "1"}, {"run": "a"}], ids=str
)
def test_a_report_whose_number_does_not_parse_is_refused(link: Link, number: Any) -> None:
    with pytest.raises(InvalidInputError):
        link.take({"report": number, "items": []})


@pytest.mark.parametrize("bounds", [{"from": "3"}, {"to": 1.5}, {"to": True}, {"from": [1]}], ids=str)
def test_a_list_whose_bounds_do_not_parse_is_refused(link: Link, bounds: dict[str, Any]) -> None:
    link.report()
    before = link.known()
    told = {item: {"points": [], "complete": True, **bounds} for item in before}
    with pytest.raises(InvalidInputError):
        link.take({"points": told})
    assert link.known() == before
