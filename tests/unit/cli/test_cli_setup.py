"""`vault`, `site`, `cloud`, `policy`, `network`, `node`: what is set up once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.cli_world import Cli
from support.service_world import World


def test_vault_show_gives_the_summary(protected: Cli) -> None:
    assert protected.json("vault", "show")["items"]["by_state"] == {"protected": 1}
    said = protected.ok("vault", "show").words
    assert "by state 1 protected" in said
    assert "nodes 2, 0 silent" in said


def test_a_token_is_printed_once_listed_without_its_secret_and_revoked(cli: Cli) -> None:
    secret = cli.ok("vault", "create-token", "night", "--role", "Operator", "--valid-days", "90").out.strip()
    (listed,) = [row for row in cli.json("vault", "tokens") if row["name"] == "night"]
    assert listed["role"] == "Operator"
    assert listed["token"] is None
    assert "night" in cli.ok("vault", "tokens").words
    assert secret not in cli.ok("vault", "tokens").out
    night = Cli(cli.world, cli.transport, {**cli.env, "SECONDSITE_TOKEN": secret})
    night.ok("item", "list")
    assert cli.ok("vault", "revoke-token", listed["id"]).err == "revoked\n"
    assert night.run("item", "list").code == 5
    made = cli.json("vault", "create-token", "day")
    assert made["role"] == "Reader"
    assert made["token"]
    assert cli.json("vault", "revoke-token", made["id"]) == {}


def test_the_audit_trail_tells_who_did_what(cli: Cli) -> None:
    assert "NODE enrol" in cli.ok("vault", "audit").words
    cli.ok("site", "create", "oslo")
    (row,) = cli.json("vault", "audit", "--limit", "1")
    assert (row["actor"], row["method"], row["outcome"]) == ("Contributor", "POST", "done")
    assert "Contributor POST /api/v1/sites done" in cli.ok("vault", "audit").words.replace(
        "Contributor Contributor", "Contributor"
    )


def test_sites_are_made_listed_and_deleted(cli: Cli) -> None:
    assert cli.json("site", "create", "oslo")["name"] == "oslo"
    assert [row["name"] for row in cli.json("site", "list")] == ["ams", "oslo", "rtm"]
    assert "oslo" in cli.ok("site", "list").out
    assert cli.ok("site", "delete", "oslo").err == "site oslo deleted\n"
    assert "oslo" not in cli.ok("site", "list").out
    refused = cli.run("site", "delete", "ams")
    assert (refused.code, refused.out) == (3, "")


def test_clouds_are_made_mapped_listed_with_their_mapping_unmapped_and_deleted(cli: Cli) -> None:
    listed = {row["name"]: row for row in cli.json("cloud", "list")}
    mapping = listed["cloud-ams"]["mapping"]
    assert (mapping["target"], mapping["policy"]) == ("cloud-rtm", "fast")
    assert listed["cloud-rtm"]["mapping"] is None
    assert "cloud-ams ams host-ams cloud-rtm fast" in cli.ok("cloud", "list").words
    cli.ok("cloud", "unmap", mapping["id"])
    assert "cloud-ams ams host-ams - -" in cli.ok("cloud", "list").words
    said = cli.ok("cloud", "map", "cloud-ams", "cloud-rtm", "--policy", "fast")
    assert said.err == "cloud-ams replicates to cloud-rtm under fast\n"
    assert cli.json("cloud", "create", "silver", "--site", "ams")["nodes"] == []
    assert cli.json("cloud", "delete", "silver") == {}
    assert cli.run("cloud", "delete", "cloud-ams").code == 3


def test_a_policy_takes_only_what_is_given_and_can_be_changed(cli: Cli) -> None:
    made = cli.json("policy", "create", "slow", "--copy-frequency-s", "300", "--no-compression")
    assert (made["copy_frequency_s"], made["compression"], made["retention_hours"]) == (300, False, 24.0)
    changed = cli.json("policy", "change", "slow", "--retention-hours", "48", "--bandwidth-limit", "1000000")
    assert (changed["retention_hours"], changed["bandwidth_limit"]) == (48.0, 1_000_000)
    assert cli.json("policy", "change", "slow", "--bandwidth-limit", "0")["bandwidth_limit"] is None
    assert "slow 300 s 48 h, 2880 points no - " in cli.ok("policy", "list").words
    cli.ok("policy", "change", "slow", "--keep-all-hours", "12", "--keep-hourly-hours", "24")
    assert "48 h, all for 12 h, hourly to 24 h, 2880 points" in cli.ok("policy", "list").words
    assert cli.json("policy", "show", "slow")["keep_hourly_hours"] == 24
    refused = cli.run("policy", "change", "slow", "--keep-all-hours", "0")
    assert "keep_hourly_hours is out of range" in refused.err
    assert cli.json("policy", "change", "slow", "--keep-all-hours", "0", "--keep-hourly-hours", "0")[
        "revision"
    ]
    windows = ("mon-fri 08:00-18:00 2MiB", "daily 18:00-08:00 none")
    options = [part for window in windows for part in ("--bandwidth-schedule", window)]
    scheduled = cli.json("policy", "change", "slow", *options, "--bandwidth-zone", "Europe/Amsterdam")
    assert scheduled["bandwidth_schedule"][0]["from"] == "08:00"
    assert scheduled["bandwidth_schedule"][1]["limit"] is None
    assert "mon,tue,wed,thu,fri 08:00-18:00 2097152" in cli.ok("policy", "show", "slow").words
    assert cli.json("policy", "change", "slow", "--bandwidth-schedule", "none")["bandwidth_schedule"] == []
    for given in (
        ["--bandwidth-schedule", "weekend 2MiB"],
        ["--bandwidth-zone", "Mars/Base"],
        ["--resync-window", "x"],
    ):
        refused = cli.run("policy", "change", "slow", *given)
        assert refused.code == 2
        assert refused.err
    wrong = cli.run("policy", "change", "slow", "--copy-frequency-s", "7")
    assert wrong.code == 2
    assert "copy_frequency_s" in wrong.err
    assert cli.ok("policy", "delete", "slow").err == "policy slow deleted\n"
    assert {row["name"] for row in cli.json("policy", "list")} == {"fast"}


def test_networks_are_listed_with_their_mappings(cli: Cli) -> None:
    listed = cli.json("network", "list")
    (mapping,) = listed["mappings"]
    assert mapping["test_network"] == "lan-test"
    said = cli.ok("network", "list").words
    assert "ams/lan rtm/lan-rtm lan-test" in said
    assert "The nodes report no networks." in said
    assert cli.json("network", "unmap", mapping["id"]) == {}
    assert "No network is mapped" in cli.ok("network", "list").err
    assert cli.json("network", "map", "ams/lan", "rtm/lan-rtm")["test_network"] is None


def test_a_network_without_a_site_is_refused_with_the_form(cli: Cli) -> None:
    said = cli.run("network", "map", "lan", "rtm/lan-rtm")
    assert said.code == 2
    assert "SITE/NETWORK" in said.err


def test_nodes_are_listed_shown_and_removed(cli: Cli) -> None:
    assert [row["name"] for row in cli.json("node", "list")] == ["host-ams", "host-rtm"]
    assert "host-ams ams" in cli.ok("node", "list").words
    shown: dict[str, Any] = cli.json("node", "show", "host-ams")
    assert shown["vms"] == 1
    assert "data address 127.0.0.1:9" in cli.ok("node", "show", "host-ams").words
    cli.ok(
        "cloud", "unmap", next(row["mapping"]["id"] for row in cli.json("cloud", "list") if row["mapping"])
    )
    for site in ("ams", "rtm"):
        cli.ok("cloud", "delete", f"cloud-{site}")
    assert cli.ok("node", "remove", "host-ams").err == "node host-ams removed\n"
    assert cli.json("node", "remove", "host-rtm") == {}
    assert "No node is enrolled" in cli.ok("node", "list").err


def test_a_registration_key_is_printed_alone_so_that_it_can_be_copied(cli: Cli) -> None:
    assert cli.ok("node", "key", "--site", "ams").out.count("\n") == 1
    assert cli.json("node", "key", "--site", "ams")["key"]
    unknown = cli.run("node", "key", "--site", "mars")
    assert unknown.code == 4


def test_empty_lists_say_what_to_do_next(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        empty = Cli.of(world)
        for words, hint in (
            ("item list", "secondsite item protectable"),
            ("site list", "secondsite site create"),
            ("cloud list", "secondsite cloud create"),
            ("policy list", "secondsite policy create"),
            ("node list", "secondsite node key"),
        ):
            said = empty.ok(*words.split())
            assert (said.out, hint in said.err) == ("", True)
            assert empty.json(*words.split()) == []
    finally:
        world.close()
