"""Accounts: who gets in, how long, how guessing is slowed down, and what the database keeps of it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    LockedOutError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from secondsite.service import passwords
from secondsite.service.context import Actor
from secondsite.service.store import accounts as store
from secondsite.service.store import pruning
from secondsite.service.usecases import accounts, tokens
from secondsite.service.vocabulary import Role
from support.service_world import World

PASSWORD = "correct horse battery"
OTHER = "staple, rather wobbly"


@pytest.fixture
def anna(empty_world: World) -> World:
    """A vault with the account anna, an Operator, and a Contributor's token."""
    tokens.create_token(empty_world.ctx, "first", Role.CONTRIBUTOR)
    accounts.create_account(empty_world.ctx, "anna", Role.OPERATOR, PASSWORD)
    return empty_world


def entered(world: World, password: str = PASSWORD, source: str = "192.0.2.1") -> Actor:
    return accounts.identify(world.ctx, accounts.login(world.ctx, "anna", password, source).secret)


def guess(world: World, name: str = "anna", source: str = "192.0.2.9", times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(UnauthenticatedError):
            accounts.login(world.ctx, name, "a wrong one", source)


def waits(world: World, name: str = "anna", source: str = "192.0.2.9") -> int:
    with pytest.raises(LockedOutError) as refused:
        accounts.login(world.ctx, name, PASSWORD, source)
    return int(refused.value.attributes["retry_after_s"])


# -- passwords ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [passwords.ARGON, passwords.SCRYPT])
def test_a_password_is_kept_as_a_slow_hash_and_recognised(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "ARGON", head)
    kept = passwords.hash_password(PASSWORD, b"0123456789abcdef")
    assert kept.startswith(head)
    assert PASSWORD not in kept
    assert passwords.matches(PASSWORD, kept)
    assert not passwords.matches(PASSWORD + "x", kept)
    assert kept != passwords.hash_password(PASSWORD, b"another salt 012")


def test_the_same_letters_typed_in_another_way_are_the_same_password() -> None:
    kept = passwords.hash_password("caf\u00e9 und noch was", b"0123456789abcdef")
    assert passwords.matches("cafe\u0301 und noch was", kept)


@pytest.mark.parametrize("password", ["short", "x" * 257, "aaaaaaaaaaaaaaaa", "anna-anna-is-it"])
def test_a_password_that_is_guessed_at_once_is_refused(anna: World, password: str) -> None:
    with pytest.raises(InvalidInputError):
        accounts.set_password(anna.ctx, "anna", password)


def test_a_hash_of_an_older_kind_is_renewed_by_the_login(
    anna: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = passwords.hash_password(PASSWORD, b"0123456789abcdef").replace("t=2", "t=1")
    with monkeypatch.context() as patched:
        patched.setattr(passwords, "ARGON", passwords.ARGON.replace("t=2", "t=1"))
        old = passwords.hash_password(PASSWORD, b"0123456789abcdef")
    with anna.store.transaction() as tx:
        store.change(tx, store.get(tx, "anna").id, password=old)
    entered(anna)
    with anna.store.reading() as tx:
        assert not passwords.outdated(store.get(tx, "anna").password)
    entered(anna)


def test_a_flood_of_logins_leaves_threads_to_others(anna: World) -> None:
    for _ in range(8):
        assert passwords._waiting.acquire(blocking=False)
    try:
        with pytest.raises(UnavailableError):
            accounts.login(anna.ctx, "anna", PASSWORD)
    finally:
        for _ in range(8):
            passwords._waiting.release()
    entered(anna)


# -- sessions ----------------------------------------------------------------------------------------------


def test_a_login_opens_a_session_with_the_accounts_name_and_role(anna: World) -> None:
    actor = entered(anna)
    assert (actor.name, actor.role) == ("anna", Role.OPERATOR)
    with anna.store.reading() as tx:
        assert store.get(tx, "anna").last_login == anna.clock()


def test_a_session_ends_by_itself(anna: World) -> None:
    secret = accounts.login(anna.ctx, "anna", PASSWORD).secret
    anna.clock.turn(hours=7, minutes=59)
    assert accounts.identify(anna.ctx, secret).name == "anna"
    anna.clock.turn(minutes=1)
    with pytest.raises(UnauthenticatedError, match="has ended"):
        accounts.identify(anna.ctx, secret)
    with anna.store.transaction() as tx:
        pruning.prune(tx, anna.clock() + timedelta(seconds=1))
        assert store.list_sessions(tx) == []


def test_a_logout_ends_this_session_and_no_other(anna: World) -> None:
    one, two = (accounts.login(anna.ctx, "anna", PASSWORD).secret for _ in range(2))
    accounts.logout(anna.ctx, accounts.identify(anna.ctx, one))
    with pytest.raises(UnauthenticatedError):
        accounts.identify(anna.ctx, one)
    assert accounts.identify(anna.ctx, two).name == "anna"


def test_disabling_or_removing_an_account_ends_its_sessions_at_once(anna: World) -> None:
    secret = accounts.login(anna.ctx, "anna", PASSWORD).secret
    accounts.change_account(anna.ctx, "anna", disabled=True)
    with pytest.raises(UnauthenticatedError):
        accounts.identify(anna.ctx, secret)
    with pytest.raises(UnauthenticatedError, match="the name or the password is wrong"):
        accounts.login(anna.ctx, "anna", PASSWORD)
    accounts.change_account(anna.ctx, "anna", disabled=False)
    with pytest.raises(UnauthenticatedError):
        accounts.identify(anna.ctx, secret)
    secret = accounts.login(anna.ctx, "anna", PASSWORD).secret
    accounts.remove_account(anna.ctx, "anna")
    with pytest.raises(UnauthenticatedError):
        accounts.identify(anna.ctx, secret)


def test_another_role_counts_from_the_next_call_on(anna: World) -> None:
    secret = accounts.login(anna.ctx, "anna", PASSWORD).secret
    accounts.change_account(anna.ctx, "anna", role=Role.READER)
    assert accounts.identify(anna.ctx, secret).role is Role.READER


def test_a_new_password_ends_the_other_sessions(anna: World) -> None:
    mine, other = (accounts.login(anna.ctx, "anna", PASSWORD).secret for _ in range(2))
    actor = accounts.identify(anna.ctx, mine)
    with pytest.raises(UnauthenticatedError, match="present password"):
        accounts.change_password(anna.ctx, actor, OTHER, OTHER)
    accounts.change_password(anna.ctx, actor, PASSWORD, OTHER)
    assert accounts.identify(anna.ctx, mine).name == "anna"
    with pytest.raises(UnauthenticatedError):
        accounts.identify(anna.ctx, other)
    with pytest.raises(UnauthenticatedError):
        accounts.login(anna.ctx, "anna", PASSWORD)
    accounts.set_password(anna.ctx, "anna", PASSWORD)
    with pytest.raises(UnauthenticatedError):
        accounts.identify(anna.ctx, mine)
    entered(anna)


def test_the_oldest_of_too_many_sessions_ends(anna: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "SESSIONS_MAX", 2)
    secrets = []
    for _ in range(3):
        secrets.append(accounts.login(anna.ctx, "anna", PASSWORD).secret)
        anna.clock.turn(seconds=1)
    with pytest.raises(UnauthenticatedError):
        accounts.identify(anna.ctx, secrets[0])
    assert [accounts.identify(anna.ctx, secret).name for secret in secrets[1:]] == ["anna"] * 2


def test_one_sees_and_ends_ones_own_sessions_and_a_contributor_all(anna: World) -> None:
    accounts.create_account(anna.ctx, "bob", Role.READER, OTHER)
    me = entered(anna)
    bob = accounts.identify(anna.ctx, accounts.login(anna.ctx, "bob", OTHER).secret)
    chief = Actor("first", Role.CONTRIBUTOR)
    assert [name for _, name in accounts.list_sessions(anna.ctx, me)] == ["anna"]
    assert sorted(name for _, name in accounts.list_sessions(anna.ctx, chief)) == ["anna", "bob"]
    assert accounts.list_sessions(anna.ctx, Actor("a token", Role.READER)) == []
    assert me.session is not None
    assert bob.session is not None
    with pytest.raises(NotFoundError):
        accounts.end_session(anna.ctx, bob, me.session)
    accounts.end_session(anna.ctx, bob, bob.session)
    accounts.end_session(anna.ctx, chief, me.session)
    assert accounts.list_sessions(anna.ctx, chief) == []


def test_what_only_an_account_has_a_token_has_not(anna: World) -> None:
    program = Actor("first", Role.CONTRIBUTOR)
    with pytest.raises(ConflictError):
        accounts.logout(anna.ctx, program)
    with pytest.raises(ConflictError):
        accounts.change_password(anna.ctx, program, PASSWORD, OTHER)


# -- guessing ----------------------------------------------------------------------------------------------


def test_an_unknown_name_and_a_wrong_password_get_the_same_answer_after_the_same_work(
    anna: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    real = passwords._compute
    monkeypatch.setattr(passwords, "_compute", lambda *args: computed.append(args[0]) or real(*args))
    answers = []
    for name in ("anna", "nobody"):
        passwords.dummy()
        computed.clear()
        with pytest.raises(UnauthenticatedError) as refused:
            accounts.login(anna.ctx, name, "a wrong one")
        answers.append((refused.value.to_dict(), tuple(computed)))
    assert answers[0] == answers[1]


def test_guessing_waits_longer_each_time_up_to_a_quarter_of_an_hour(anna: World) -> None:
    guess(anna, times=5)
    seen = []
    for _ in range(12):
        seen.append(waits(anna))
        anna.clock.turn(seconds=seen[-1])
        guess(anna)
    assert seen[:4] == [3, 5, 9, 17]
    assert max(seen) == seen[-1] == 901


def test_while_it_waits_even_the_right_password_is_not_looked_at_and_then_it_is(anna: World) -> None:
    guess(anna, times=5)
    left = waits(anna)
    assert waits(anna) == left, "an attempt that is not looked at does not prolong the wait"
    anna.clock.turn(seconds=left)
    entered(anna, source="192.0.2.9")
    guess(anna, times=5)  # a login under this name starts anew


def test_names_that_nobody_has_wait_as_well(anna: World) -> None:
    guess(anna, "nobody", times=5)
    assert waits(anna, "nobody") == 3
    assert waits(anna, "NOBODY") == 3


def test_an_address_that_tries_many_names_waits(anna: World) -> None:
    for number in range(30):
        guess(anna, f"name-{number}")
    assert waits(anna) == 3
    entered(anna, source="192.0.2.1")  # others are not kept out by it


def test_a_login_of_ones_own_does_not_clear_the_address(anna: World) -> None:
    for number in range(29):
        guess(anna, f"name-{number}")
    entered(anna, source="192.0.2.9")
    guess(anna, "one-more")
    assert waits(anna) == 3


def test_an_hour_without_failures_forgets_them(anna: World) -> None:
    guess(anna, times=5)
    anna.clock.turn(hours=1, seconds=1)
    guess(anna, times=5)


def test_a_wrong_present_password_counts_as_a_guess(anna: World) -> None:
    actor = entered(anna)
    for _ in range(5):
        with pytest.raises(UnauthenticatedError):
            accounts.change_password(anna.ctx, actor, "a wrong one", OTHER)
    with pytest.raises(LockedOutError):
        accounts.change_password(anna.ctx, actor, PASSWORD, OTHER)


def test_a_new_password_by_a_contributor_ends_the_wait(anna: World) -> None:
    guess(anna, times=5)
    accounts.set_password(anna.ctx, "anna", OTHER)
    entered(anna, OTHER)


def test_a_flood_of_names_fills_no_table(anna: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FAILURES_MAX", 20)
    with anna.store.transaction() as tx:
        for number in range(100):
            store.set_failures(tx, f"name:{number}", 1, anna.clock() + timedelta(seconds=number))
        assert store.failures(tx, "name:99") is not None
        assert store.failures(tx, "name:0") is None


# -- accounts ----------------------------------------------------------------------------------------------


def test_a_name_is_taken_once_among_accounts_and_tokens(anna: World) -> None:
    for name in ("anna", "Anna", "first"):
        with pytest.raises(ConflictError):
            accounts.create_account(anna.ctx, name, Role.READER, PASSWORD)
    with pytest.raises(ConflictError):
        tokens.create_token(anna.ctx, "anna", Role.READER)
    with pytest.raises(InvalidInputError):
        accounts.create_account(anna.ctx, "anna/bob", Role.READER, PASSWORD)


def test_one_way_in_with_the_role_of_a_contributor_is_left(anna: World) -> None:
    accounts.create_account(anna.ctx, "chief", Role.CONTRIBUTOR, OTHER)
    tokens.revoke_token(anna.ctx, "first")
    for attempt in (
        lambda: accounts.remove_account(anna.ctx, "chief"),
        lambda: accounts.change_account(anna.ctx, "chief", disabled=True),
        lambda: accounts.change_account(anna.ctx, "chief", role=Role.OPERATOR),
    ):
        with pytest.raises(ConflictError, match="last Contributor"):
            attempt()
    accounts.change_account(anna.ctx, "anna", role=Role.CONTRIBUTOR)
    accounts.remove_account(anna.ctx, "chief")
