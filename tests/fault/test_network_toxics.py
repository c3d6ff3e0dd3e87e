"""A replication over a bad line, between the real sender and the real receiver over mutual TLS. See docs/design/proofs/network.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from secondsite.model.units import KIB, MIB
from support.network_bugs import BUGS
from support.network_hour import hour
from support.network_scenarios import SCENARIOS, Figures, flap, loss, thin

pytestmark = pytest.mark.fault

BOUNDED: Mapping[str, Callable[[Path], Figures]] = {
    **SCENARIOS,
    "loss": partial(loss, size=2 * MIB),
    "thin": partial(thin, size=12 * KIB),
    "flap": partial(flap, every_s=0.3, for_s=2.5),
}


@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_a_bad_line_costs_what_it_must_and_nothing_that_is_acknowledged_is_wrong(
    name: str, tmp_path: Path
) -> None:
    figures = BOUNDED[name](tmp_path)
    assert figures.changed > 0


def test_an_hour_without_a_line_is_a_dozen_tries_one_alert_and_one_delta(tmp_path: Path) -> None:
    figures = hour(tmp_path)
    assert figures.counts.failed > 5, "the line was not away"


@pytest.mark.parametrize("name", ["eager-compare", "sent-again", "believed-seal"])
def test_the_scenarios_find_a_planted_bug(name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    with bug.planted(), pytest.raises(AssertionError):
        BOUNDED[bug.scenario](tmp_path)
