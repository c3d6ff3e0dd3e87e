"""`secondsite node key`, `keys`, `revoke-key`."""

from __future__ import annotations

from support.cli_world import Cli


def test_a_key_is_made_for_one_node_listed_and_revoked(cli: Cli) -> None:
    before = {row["id"] for row in cli.json("node", "keys")}
    key = cli.ok("node", "key", "--site", "ams").out.strip()
    identifier, secret, _ = key.split(".")
    (row,) = [row for row in cli.json("node", "keys") if row["id"] not in before]
    assert (row["id"], row["uses"], row["uses_max"]) == (identifier, 0, 1)
    shown = cli.ok("node", "keys")
    assert f"{identifier} ams 0 of 1" in shown.words
    assert secret not in shown.out
    assert cli.json("node", "key", "--site", "ams", "--uses", "3")["uses_max"] == 3
    assert cli.json("node", "key", "--site", "ams", "--uses", "0")["uses_max"] is None
    assert "0 of any number" in cli.ok("node", "keys").words
    cli.ok("node", "revoke-key", identifier)
    assert cli.run("node", "revoke-key", identifier).code == 4
