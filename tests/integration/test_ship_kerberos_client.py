"""Kerberos from the dialling side, with a real KDC: what it believes, and what it says when something is missing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secondsite.errors import InvalidInputError, SecondSiteError, UnauthenticatedError, UnavailableError
from secondsite.ship import kerberos
from secondsite.ship.kerberos import KerberosAcceptor
from secondsite.ship.protocol import ITEM_PATH, item_path
from support.private_kdc import REALM, PrivateKdc
from support.ship_site import ITEM, SOURCE, KerberosSite, kerberos_site

pytestmark = pytest.mark.integration

ME = f"HTTP/source.test@{REALM}"
STATUS = item_path(ITEM_PATH, ITEM)


@pytest.fixture(scope="module")
def kdc() -> Iterator[PrivateKdc]:
    kdc = PrivateKdc()
    yield kdc
    kdc.close()


@pytest.fixture
def site(tmp_path: Path, kdc: PrivateKdc) -> Iterator[KerberosSite]:
    with kerberos_site(tmp_path, kdc) as site:
        site.names[ME] = SOURCE
        yield site


# -- our side checks the other -----------------------------------------------------------------------------


def test_a_target_that_lacks_the_services_key_is_not_believed(site: KerberosSite) -> None:
    # It has a certificate of the vault, but not the keytab of the service that we dial.
    service = f"HTTP/another-target.test@{REALM}"
    site.kdc.keytab(service)
    part = site.site.part(b"secret")
    with pytest.raises(UnauthenticatedError):
        site.site.sender(trust=site.trust(ME, service=service)).send([part])
    assert site.site.receiver.received == 0


@pytest.mark.parametrize(
    "answer",
    [None, b"garbage", bytes.fromhex("a1073005a0030a0100")],
    ids=["nothing", "garbage", "just 'accepted'"],
)
def test_an_answer_without_proof_is_not_believed(
    site: KerberosSite, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    # The last one is SPNEGO's "accepted" without the Kerberos token that only the key's owner can make.
    accept = KerberosAcceptor.accept

    def boast(self: KerberosAcceptor, *arguments: Any) -> Any:
        return accept(self, *arguments)[0], answer

    monkeypatch.setattr(KerberosAcceptor, "accept", boast)
    part = site.site.part(b"secret")
    with pytest.raises(UnauthenticatedError):
        site.site.sender(trust=site.trust(ME)).send([part])
    assert site.site.receiver.received == 0


# -- what is missing says so --------------------------------------------------------------------------------


def test_a_missing_keytab_of_the_sender_is_named(site: KerberosSite, tmp_path: Path) -> None:
    trust = replace(site.trust(ME), keytab=tmp_path / "gone.keytab")
    with site.client(trust) as client, pytest.raises(InvalidInputError, match=r"gone\.keytab cannot be read"):
        client.get(STATUS)


def test_a_keytab_of_somebody_else_is_named(site: KerberosSite) -> None:
    trust = replace(site.trust(ME), principal=f"HTTP/other.test@{REALM}")
    with site.client(trust) as client, pytest.raises(UnauthenticatedError, match=r"HTTP/other\.test|keytab"):
        client.get(STATUS)


@pytest.mark.parametrize("keytab", ["missing", "of somebody else"])
def test_a_listener_without_its_key_says_so(kdc: PrivateKdc, tmp_path: Path, keytab: str) -> None:
    path = tmp_path / "gone.keytab" if keytab == "missing" else kdc.keytab("HTTP/somebody-else.test")
    acceptor = KerberosAcceptor(f"HTTP/target.test@{REALM}", path, lambda _: None, tmp_path / "replay")
    with kdc.using(), pytest.raises(SecondSiteError) as caught:
        acceptor.check()
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_service_whose_keys_were_changed_is_reached_at_the_second_try(
    tmp_path: Path, kdc: PrivateKdc
) -> None:
    # Our ticket is for the old key, which the target has no more: without a fresh one we would be out until it ends.
    with kerberos_site(tmp_path, kdc) as site:
        site.names[ME] = SOURCE
        trust = site.trust(ME)
        with site.client(trust) as client:
            client.get(STATUS)
        keytab = kdc.keytab(site.service)
        keytab.unlink()
        kdc.change_keys(site.service)
        with site.client(trust) as client, pytest.raises(UnavailableError, match="a ticket from before"):
            client.get(STATUS)
        with site.client(trust) as client:
            client.get(STATUS)
        keytab.unlink()
        kdc.change_keys(site.service)
        assert site.site.sender(trust=trust).status().state == "initial", "one call, tried again by itself"


def test_a_connection_does_not_wait_long_behind_one_that_waits_for_the_kdc(
    site: KerberosSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kerberos, "_QUEUE_S", 0.01)
    trust = site.trust(ME)
    with trust._locked(), site.client(trust) as client, pytest.raises(UnavailableError, match="KDC"):
        client.get(STATUS)


def test_many_connections_at_once_fill_one_cache(site: KerberosSite) -> None:
    trust = site.trust(ME)
    failed: list[BaseException] = []

    def call() -> None:
        try:
            with site.client(trust) as client:
                client.get(STATUS)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_kdc_that_is_down_is_worth_another_try(site: KerberosSite, tmp_path: Path) -> None:
    trust = site.trust(f"HTTP/late.test@{REALM}")
    site.names[trust.principal] = SOURCE
    site.kdc.stop()
    try:
        with site.client(trust) as client, pytest.raises(UnavailableError):
            client.get(STATUS)
    finally:
        site.kdc.start()
    with site.client(trust) as client:
        assert client.get(STATUS)["epoch"]
