"""`group`: items that share points, from the command line."""

from __future__ import annotations

import pytest

from secondsite.service.usecases import protect, reports
from support.cli_world import Cli
from support.service_node import machine
from support.service_world import ME, absent


def seal(cli: Cli, group: str, number: int) -> None:
    """Both members seal a point of this cut."""
    time = cli.world.clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for name in ("web-1", "web-2"):
        item = cli.world.item(name)
        point = {
            "sequence": 100 + number,
            "time": time,
            "digest": f"{number:064x}",
            "group": f"{group}:{number}",
        }
        reports.take_report(
            cli.world.ctx, item.journal_node_id, {"points": {item.id: {"points": [point], "complete": False}}}
        )
    cli.world.clock.turn(seconds=5)


@pytest.fixture
def shop(protected: Cli) -> Cli:
    """web-1 and web-2 are a group with two common points."""
    world = protected.world
    world.answers["source.group"] = absent
    world.inventory("host-ams", world.vm, machine("web-2"))
    world.run(protect.protect(world.ctx, ME, "web-2").id)
    world.started.clear()
    group = protected.json("group", "create", "shop", "web-1", "web-2")
    for number in (1, 2):
        seal(protected, group["id"], number)
    world.sequence = 200
    return protected


def test_a_group_is_made_shown_changed_and_deleted(shop: Cli) -> None:
    (row,) = shop.json("group", "list")
    assert [member["name"] for member in row["members"]] == ["web-1", "web-2"]
    assert "shop web-1, web-2 host-ams 2 5.0 s" in shop.ok("group", "list").words
    said = shop.ok("group", "show", "shop").words
    for essential in (
        "members web-1 (protected), web-2 (protected)",
        "latest point 2",
        "unplanned-failover yes",
    ):
        assert essential in said
    refused = shop.run("group", "change", "shop", "--remove", "web-1")
    assert (refused.code, "two members" in refused.err) == (2, True)
    assert shop.json("group", "change", "shop", "--add", "web-1")["name"] == "shop"
    shop.ok("group", "delete", "shop")
    assert shop.json("group", "list") == []
    assert shop.run("group", "show", "shop").code == 4


def test_common_points_are_listed_with_each_members_own(shop: Cli) -> None:
    rows = shop.json("group", "points", "shop", "--limit", "5")
    assert [(row["number"], row["sequences"]) for row in rows] == [
        (2, {"web-1": 102, "web-2": 102}),
        (1, {"web-1": 101, "web-2": 101}),
    ]
    assert "web-1 102, web-2 102" in shop.ok("group", "points", "shop").words


def test_every_operation_follows_the_jobs_of_all_members(shop: Cli) -> None:
    def run(*words: str) -> set[str]:
        return {job["state"] for job in shop.json(*words)["jobs"]}

    assert run("group", "test-failover", "shop", "--point", "1", "--network", "none") == {"Succeeded"}
    assert shop.world.args["target.test_start"]["sequence"] == 101
    refused = shop.run("group", "commit", "shop")
    assert (refused.code, "web-1: " in refused.err) == (3, True)
    assert run("group", "cleanup-test", "shop") == {"Succeeded"}
    said = shop.ok("group", "unplanned-failover", "shop", "--shutdown-source", "no")
    assert said.words.count("Succeeded: unplanned-failover") == 2
    assert run("group", "change-point", "shop", "--point", "1") == {"Succeeded"}
    assert shop.world.args["target.failover"]["sequence"] == 101
    assert run("group", "cancel", "shop", "--start") == {"Succeeded"}
    begun = shop.json("group", "unplanned-failover", "shop", "--no-wait", "--shutdown-source", "no")
    assert {job["state"] for job in begun["jobs"]} == {"NotStarted"}
    assert begun["point"]["number"] == 2
    for job in begun["jobs"]:
        shop.ok("job", "wait", job["id"])
    assert run("group", "commit", "shop") == {"Succeeded"}
