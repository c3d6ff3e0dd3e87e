"""`secondsite health`."""

from __future__ import annotations

from secondsite.service.health.watch import HealthWatch
from support.cli_world import Cli


def test_health_shows_what_is_wrong_and_what_to_do(protected: Cli) -> None:
    protected.world.clock.turn(minutes=10)
    said = protected.ok("health").words
    assert "the newest recovery point is older than the RPO threshold" in said
    assert "web-1" in said
    found = {entry["code"]: entry for entry in protected.json("health")}
    assert found["rpo"]["level"] == "critical"
    assert found["rpo"]["where"][0]["name"] == "web-1"
    told = protected.ok("health", "--verbose").words
    assert "the threshold is below the copy frequency plus the time of a cycle" in told
    assert "the policy allows" in told


def test_health_says_so_when_nothing_is_wrong(cli: Cli) -> None:
    assert "Nothing is wrong" in cli.ok("health").words
    assert cli.json("health") == []


def test_item_statistics_shows_figures_and_their_history(protected: Cli) -> None:
    world = protected.world
    watch = HealthWatch(world.ctx)
    watch.look()
    world.clock.turn(seconds=30)
    watch.look()
    watch.close()
    said = protected.ok("item", "statistics", "web-1", "--history").words
    assert "0 done, 6 (100.0%) missed, 0 failed" in said
    assert "30.0 s (alert above 60 s, copied every 5 s)" in said
    assert "No hour is complete yet" in said
    found = protected.json("item", "statistics", "web-1", "--hours", "1")
    assert found["cycles"]["expected"] == 6
    assert found["rpo"]["largest_s"] == 30.0
    assert protected.json("item", "statistics", "web-1", "--history")["history"] == []
