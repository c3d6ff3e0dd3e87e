"""How often a machine's start looks at all points of its journal: there may be thousands, and somebody waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secondsite.journal.points import Chain, PointStore
from secondsite.model.ids import Epoch, Sequence
from support.journals import ITEM
from support.power import unsynced
from support.role_world import TargetSide

TEST = {"name": "web-test", "networks": {}}


@pytest.fixture
def side(tmp_path: Path) -> Iterator[TargetSide]:
    with unsynced():
        side = TargetSide(tmp_path)
        yield side
        side.close()


@pytest.fixture
def before_the_view(side: TargetSide, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the points were looked at when a view was about to be started, one number for each view."""
    side.journals.get(ITEM)  # opening it looks, too
    looks, counts = 0, []
    chain, ensure = PointStore.chain, side.views.ensure

    def counted(*args: Any) -> Chain:
        nonlocal looks
        looks += 1
        return chain(*args)

    def started(*args: Any) -> Path:
        counts.append(looks)
        return ensure(*args)

    monkeypatch.setattr(PointStore, "chain", counted)
    monkeypatch.setattr(side.views, "ensure", started)
    return counts


def test_a_test_of_a_point_looks_at_all_points_once(side: TargetSide, before_the_view: list[int]) -> None:
    side.done("target.test_start", 1, sequence=2, **TEST)
    assert before_the_view == [1]


def test_a_test_of_the_newest_point_looks_at_all_points_twice(
    side: TargetSide, before_the_view: list[int]
) -> None:
    side.done("target.test_start", 1, sequence=None, **TEST)
    assert before_the_view == [2]


def test_a_failover_looks_at_all_points_once(side: TargetSide, before_the_view: list[int]) -> None:
    side.replicas.fail_over(ITEM, Sequence(2), None, Epoch(2), "web", {})
    assert before_the_view == [1]
