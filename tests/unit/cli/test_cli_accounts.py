"""`secondsite login`, `logout`, `account ...`, `audit ...`, `service token`: people and their trail, from outside."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.cli_world import URL, Cli, Said, call

PASSWORD, OTHER = "correct horse battery", "staple, rather wobbly"


class Person:
    """Somebody at a terminal of their own, with settings in a file and no variables."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self._cli = cli
        self.config = folder / "anna.json"

    def run(self, *arguments: str, stdin: str | None = None) -> Said:
        env: dict[str, str | None] = {"SECONDSITE_CONFIG": str(self.config)}
        return call(self._cli.transport, *arguments, env=env, stdin=stdin)


@pytest.fixture
def anna(cli: Cli, tmp_path: Path) -> Person:
    assert (
        with_stdin(cli, PASSWORD, "account", "add", "anna", "--role", "Operator", "--password-stdin").code
        == 0
    )
    return Person(cli, tmp_path)


def with_stdin(cli: Cli, text: str, *arguments: str) -> Said:
    return call(cli.transport, *arguments, env=cli.env, stdin=f"{text}\n")


def log_in(person: Person, password: str = PASSWORD) -> Said:
    return person.run("login", "anna", "--url", URL, "--password-stdin", stdin=f"{password}\n")


def test_a_login_is_kept_for_later_commands_until_the_logout(anna: Person) -> None:
    said = log_in(anna)
    assert (said.code, said.out) == (0, "")
    assert said.err.startswith("logged in as anna (Operator) until ")
    assert stat.S_IMODE(anna.config.stat().st_mode) == 0o600
    assert anna.run("item", "list").code == 0
    assert anna.run("site", "create", "x").code == 5
    assert anna.run("account", "add", "bob", "--password-stdin", stdin=f"{OTHER}\n").code == 5
    again = anna.run("login", "anna", "--password-stdin", "--json", stdin=f"{PASSWORD}\n")
    assert (again.json["name"], again.json["config"]) == ("anna", str(anna.config)), (
        "the address is known by now"
    )
    assert "token" not in again.json
    assert anna.run("logout").code == 0
    assert "token" not in json.loads(anna.config.read_text())
    assert anna.run("item", "list").code == 2


def test_a_wrong_password_is_exit_code_5_and_keeps_nothing(anna: Person) -> None:
    said = log_in(anna, "a wrong one")
    assert (said.code, "the name or the password is wrong" in said.err) == (5, True)
    assert not anna.config.exists()
    for _ in range(4):
        log_in(anna, "a wrong one")
    said = log_in(anna)
    assert (said.code, "try again in" in said.err) == (5, True)


def test_a_logout_after_the_session_has_ended_forgets_the_token(cli: Cli, anna: Person) -> None:
    log_in(anna)
    cli.ok("account", "disable", "anna")
    assert anna.run("logout", "--json").json == {"logged_out": True, "forgotten": True}


def test_without_a_terminal_and_without_a_line_no_password_is_made_up(cli: Cli, anna: Person) -> None:
    assert "use --password-stdin" in anna.run("login", "anna", "--url", URL).err
    assert "no password" in anna.run("login", "anna", "--url", URL, "--password-stdin", stdin="").err
    assert "no service URL" in anna.run("login", "anna", "--password-stdin", stdin="x\n").err


def test_accounts_are_listed_changed_and_removed(cli: Cli, anna: Person) -> None:
    assert "anna Operator no" in cli.ok("account", "list").words
    cli.ok("account", "role", "anna", "Reader")
    assert cli.json("account", "disable", "anna")["disabled"] is True
    assert log_in(anna).code == 5
    cli.ok("account", "enable", "anna")
    assert with_stdin(cli, OTHER, "account", "passwd", "anna", "--password-stdin").code == 0
    assert log_in(anna, OTHER).code == 0
    assert [(row["name"], row["role"]) for row in cli.json("account", "list")] == [("anna", "Reader")]
    cli.ok("account", "remove", "anna")
    assert anna.run("item", "list").code == 5
    assert "There are no accounts" in cli.ok("account", "list").err


def test_ones_own_password_is_changed_with_the_present_one(anna: Person) -> None:
    log_in(anna)
    assert anna.run("account", "passwd", "--password-stdin", stdin=f"wrong wrong wrong\n{OTHER}\n").code == 5
    assert anna.run("account", "passwd", "--password-stdin", stdin=f"{PASSWORD}\n{OTHER}\n").code == 0
    assert log_in(anna).code == 5
    assert log_in(anna, OTHER).code == 0


def test_sessions_are_listed_and_ended(cli: Cli, anna: Person) -> None:
    assert "Nobody is logged in." in cli.ok("account", "sessions").err
    log_in(anna)
    (session,) = cli.json("account", "sessions")
    assert session["account"] == "anna"
    assert "anna" in cli.ok("account", "sessions").words
    cli.ok("account", "end-session", session["id"])
    assert anna.run("item", "list").code == 5


# -- the trail ---------------------------------------------------------------------------------------------


def test_the_trail_is_filtered(cli: Cli, anna: Person) -> None:
    log_in(anna)
    anna.run("site", "create", "x")
    rows = cli.json("audit", "list", "--actor", "anna", "--outcome", "refused")
    assert [(row["method"], row["path"], row["status"]) for row in rows] == [("POST", "/api/v1/sites", 403)]
    assert "anna Operator POST /api/v1/login" in cli.ok("audit", "list", "--actor", "anna").words
    assert cli.json("audit", "list", "--since", "2100-01-01") == []
    assert cli.json("audit", "list", "--item", "web-1", "--job", "none") == []
    assert cli.run("audit", "list", "--since", "yesterday").code == 2


def test_a_trail_that_somebody_changed_is_exit_code_1_and_the_line_is_named(cli: Cli, anna: Person) -> None:
    seen = cli.json("audit", "verify")
    assert seen["ok"] is True
    assert "as they were written" in cli.ok("audit", "verify", "--head", seen["head"]).out
    with cli.world.store.transaction() as tx:
        tx.execute(sa.text("DROP TRIGGER audit_no_update"))
        tx.execute(sa.text("UPDATE audit SET actor = 'somebody else' WHERE id = 2"))
    said = cli.run("audit", "verify")
    assert (said.code, said.err) == (1, "line 2: this line was changed\n")
    assert "not as they were written" in said.out
    assert cli.run("audit", "verify", "--json").code == 1


# -- beside the service ------------------------------------------------------------------------------------


def test_a_vault_is_made_with_a_first_account_and_a_token_can_be_made_beside_the_service(
    cli: Cli, tmp_path: Path
) -> None:
    data = str(tmp_path / "s")
    words = (
        "service",
        "init",
        "--data",
        data,
        "--vault",
        "head-office",
        "--account",
        "anna",
        "--password-stdin",
    )
    assert with_stdin(cli, "tiny", *words).code == 2
    assert not Path(data).exists()
    assert with_stdin(cli, PASSWORD, *words).code == 0
    made = cli.json("service", "token", "--data", data, "--name", "rescue")
    assert (made["role"], made["token"][:4]) == ("Contributor", "sst_")
    assert cli.ok("service", "token", "--data", data, "--name", "look", "--role", "Reader").out.startswith(
        "sst_"
    )
    assert cli.run("service", "token", "--data", data, "--name", "x", "--role", "King").code == 2
    engine = sa.create_engine(f"sqlite:///{data}/secondsite.sqlite")
    with engine.connect() as connection:
        lines = connection.execute(sa.text("SELECT actor, method, path, detail FROM audit ORDER BY id")).all()
    engine.dispose()
    assert {line.actor.partition(":")[0] for line in lines} == {"local"}
    assert [tuple(line)[1:] for line in lines] == [
        ("LOCAL", "service init", "vault head-office, token admin"),
        ("LOCAL", "service token", "token rescue, Contributor"),
        ("LOCAL", "service token", "token look, Reader"),
    ]
