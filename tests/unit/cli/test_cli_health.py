"""`secondsite health`."""

from __future__ import annotations

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
