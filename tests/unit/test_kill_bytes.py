"""The kill matrix's own judge of what was sent twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from support.kill_bytes import KIB, KillBytes
from support.kill_victims import Victim

MIB = 1 << 20


class Story:
    """A journal at one site, and a wire."""

    def __init__(self) -> None:
        self.sealed = [SimpleNamespace(sequence=1, changed=5 * MIB)]
        self.wire = 5 * MIB

    def points(self, name: str, site: str) -> list[Any]:
        return list(self.sealed) if site == "secondary" else []

    def total(self) -> int:
        return self.wire


def judged(sent: int, changed: list[int], killed: Victim | None) -> list[str]:
    story: Any = Story()
    judge = KillBytes(story, SimpleNamespace(name="guest"), story)  # type: ignore[arg-type]
    judge.begin()
    story.sealed += [
        SimpleNamespace(sequence=2 + number, changed=size) for number, size in enumerate(changed)
    ]
    story.wire += sent
    judge.end()
    return judge.problems(killed)


@pytest.mark.parametrize("killed", [None, Victim.SERVICE, Victim.TARGET])
def test_what_changed_and_some_protocol_is_right(killed: Victim | None) -> None:
    assert judged(3 * MIB + 100 * KIB, [2 * MIB, MIB], killed) == []


def test_a_killed_node_may_cost_one_cycle_more() -> None:
    assert judged(5 * MIB, [2 * MIB, MIB], Victim.TARGET) == []
    assert judged(6 * MIB, [2 * MIB, MIB], Victim.TARGET)


@pytest.mark.parametrize("killed", [None, Victim.SERVICE, Victim.VIEW])
def test_who_ships_nothing_costs_nothing(killed: Victim | None) -> None:
    assert judged(4 * MIB, [2 * MIB, MIB], killed)


def test_what_an_adopted_base_held_before_was_not_sent() -> None:
    assert judged(MIB, [], None)
