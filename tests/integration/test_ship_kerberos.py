"""Kerberos on the data plane, with a real KDC: which tickets get in, and what they may do."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gssapi
import pytest
from gssapi.raw import ChannelBindings

from secondsite.errors import (
    ForbiddenError,
    RemoteError,
    SecondSiteError,
    UnauthenticatedError,
)
from secondsite.model.ids import NodeId
from secondsite.ship.identity import CaOnly, CertificateAuthority
from secondsite.ship.kerberos import KerberosTrust, channel_binding
from secondsite.ship.protocol import ITEM_PATH, SESSION_PATH, item_path
from support.private_kdc import CLOCK_SKEW_S, FOREIGN, REALM, PrivateKdc
from support.service_node import until
from support.ship_site import ITEM, SOURCE, STRANGER, KerberosSite, kerberos_site, manifest

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


class RawClient:
    """A client of the tests' own, which can send what ours never would."""

    def __init__(self, site: KerberosSite) -> None:
        self.context = CaOnly(site.site.authority.pem).client_context()
        self.context.check_hostname = False
        self.connection = http.client.HTTPSConnection(
            *site.site.listener.address, context=self.context, timeout=30
        )
        self.connection.connect()
        assert isinstance(self.connection.sock, ssl.SSLSocket)
        der = self.connection.sock.getpeercert(binary_form=True)
        assert der is not None
        self.binding = channel_binding(der)

    def get(self, token: bytes | None = None, path: str = STATUS) -> http.client.HTTPResponse:
        headers = {} if token is None else {"Authorization": f"Negotiate {base64.b64encode(token).decode()}"}
        self.connection.request("GET", path, headers=headers)
        return self.connection.getresponse()

    def refusal(self, token: bytes | None = None) -> tuple[int, str]:
        """Return the status and the reason of a call that must fail; the header invites to try again."""
        answer = self.get(token)
        error = json.loads(answer.read())["error"]
        if answer.status == 401:
            assert answer.getheader("WWW-Authenticate") == "Negotiate"
        return answer.status, error["message"]


@pytest.fixture
def raw(site: KerberosSite) -> Iterator[RawClient]:
    client = RawClient(site)
    yield client
    client.connection.close()


def ticket(trust: KerberosTrust, binding: bytes | None, store: dict[str, str] | None = None) -> bytes:
    """Return a first token, without our client's code."""
    creds = gssapi.Credentials(
        name=gssapi.Name(trust.principal, gssapi.NameType.kerberos_principal),
        usage="initiate",
        store=store or {"client_keytab": str(trust.keytab), "ccache": f"MEMORY:{os.urandom(6).hex()}"},
    )
    context = gssapi.SecurityContext(
        name=gssapi.Name(trust.service, gssapi.NameType.kerberos_principal),
        creds=creds,
        usage="initiate",
        mech=gssapi.OID.from_int_seq("1.3.6.1.5.5.2"),
        flags=gssapi.RequirementFlag.mutual_authentication,
        channel_bindings=None if binding is None else ChannelBindings(application_data=binding),
    )
    token = context.step()
    assert token is not None
    return token


# -- who gets in --------------------------------------------------------------------------------------------


def test_the_right_ticket_ships_a_whole_point(site: KerberosSite) -> None:
    sender = site.site.sender(trust=site.trust(ME))
    parts = [site.site.part(os.urandom(1_000_000 + i)) for i in range(4)]
    sender.send(parts)
    digest = sender.seal(manifest(parts))
    last = sender.status().last
    assert last is not None
    assert last.digest == digest
    assert site.site.stored() == {part.digest: part.path.read_bytes() for part in parts}


def test_a_connection_shows_its_ticket_once(site: KerberosSite) -> None:
    with site.client(site.trust(ME)) as client:
        client.get(STATUS)
        first = client._idle[0].sock
        client.get(STATUS)
        assert client._idle[0].sock is first
        assert client.get(SESSION_PATH) == {"node": SOURCE}


def test_a_token_is_answered_with_the_servers_proof(site: KerberosSite, raw: RawClient) -> None:
    answer = raw.get(ticket(site.trust(ME), raw.binding))
    assert answer.status == 200
    answer.read()
    assert (answer.getheader("WWW-Authenticate") or "").startswith("Negotiate ")
    again = raw.get()
    assert (again.status, again.getheader("WWW-Authenticate")) == (200, None)


def test_without_a_ticket_nobody_gets_in(site: KerberosSite, raw: RawClient) -> None:
    assert raw.refusal()[0] == 401
    # The same connection may try again, as Negotiate's clients do.
    assert raw.get(ticket(site.trust(ME), raw.binding)).status == 200


def test_a_vault_certificate_is_no_ticket(site: KerberosSite) -> None:
    with site.client(site.site.source) as client, pytest.raises(UnauthenticatedError):
        client.get(STATUS)


def test_a_ticket_bound_to_another_certificate_is_refused(site: KerberosSite, raw: RawClient) -> None:
    other = CertificateAuthority.create("other").issue_credentials(
        NodeId("node-target"), site.site.folder / "other"
    )
    status, reason = raw.refusal(ticket(site.trust(ME), channel_binding(other.der)))
    assert status == 401
    assert "channel bindings" in reason


def test_a_ticket_without_a_binding_is_refused(site: KerberosSite, raw: RawClient) -> None:
    assert raw.refusal(ticket(site.trust(ME), None)) == (401, "the ticket is not bound to this connection")
    assert site.site.receiver.received == 0


def test_a_token_that_was_used_is_refused(site: KerberosSite, raw: RawClient) -> None:
    token = ticket(site.trust(ME), raw.binding)
    assert raw.get(token).status == 200
    thief = RawClient(site)
    status, reason = thief.refusal(token)
    assert status == 401
    assert "replay" in reason
    thief.connection.close()


def test_a_ticket_that_has_expired_is_refused(site: KerberosSite, raw: RawClient) -> None:
    trust = site.trust(f"HTTP/short-lived.test@{REALM}")
    site.names[trust.principal] = SOURCE
    cache = f"FILE:{site.site.folder}/cache"
    got = site.kdc.run("kinit", "-l", "1s", "-k", "-t", str(trust.keytab), trust.principal, KRB5CCNAME=cache)
    assert got.returncode == 0, got.stderr
    token = ticket(trust, raw.binding, {"ccache": cache})
    ended = time.monotonic() + 2 + CLOCK_SKEW_S  # whole seconds are compared
    until(lambda: time.monotonic() > ended, "the ticket's end")
    status, reason = raw.refusal(token)
    assert status == 401
    assert any(word in reason.lower() for word in ("skew", "expired")), reason


@pytest.mark.parametrize("token", [b"", b"NTLMSSP\0\1\0\0\0", b"\x60\x03garbage", os.urandom(300)])
def test_garbage_is_refused(raw: RawClient, token: bytes) -> None:
    assert raw.refusal(token)[0] == 401


def test_a_token_that_is_no_base64_is_refused(raw: RawClient) -> None:
    raw.connection.request("GET", STATUS, headers={"Authorization": "Negotiate %%%"})
    assert raw.connection.getresponse().status == 401


# -- other realms -------------------------------------------------------------------------------------------


def test_the_same_name_of_another_realm_is_somebody_else(site: KerberosSite) -> None:
    # The realms trust each other, so the ticket is valid; only the whole name is compared.
    trust = site.trust(f"HTTP/source.test@{FOREIGN}")
    with site.client(trust) as client, pytest.raises(SecondSiteError) as caught:
        client.get(STATUS)
    assert caught.value.code == ForbiddenError.code
    assert FOREIGN in caught.value.message


def test_a_ticket_for_another_realms_service_is_refused(site: KerberosSite, raw: RawClient) -> None:
    # Our service's name in a realm that somebody else runs: the key is not ours.
    service = site.service.replace(REALM, FOREIGN)
    site.kdc.keytab(service)
    trust = site.trust(f"HTTP/elsewhere.test@{FOREIGN}", service=service)
    site.names[trust.principal] = SOURCE
    assert raw.refusal(ticket(trust, raw.binding))[0] == 401


# -- what a ticket allows ----------------------------------------------------------------------------------


def test_a_principal_of_another_node_may_not_touch_the_item(site: KerberosSite) -> None:
    trust = site.trust(f"HTTP/stranger.test@{REALM}")
    site.names[trust.principal] = STRANGER
    part = site.site.part(b"not yours")
    for call in (
        lambda sender: sender.status(),
        lambda sender: sender.send([part]),
        lambda sender: sender.seal(manifest([part])),
    ):
        with pytest.raises(RemoteError) as caught:
            call(site.site.sender(trust=trust))
        assert caught.value.code == ForbiddenError.code
    assert site.site.stored() == {}


def test_a_principal_that_nobody_named_is_refused(site: KerberosSite) -> None:
    trust = site.trust(f"HTTP/nobody.test@{REALM}")
    with site.client(trust) as client, pytest.raises(RemoteError) as caught:
        client.get(STATUS)
    assert caught.value.code == ForbiddenError.code
    assert "stands for no node" in caught.value.message


def test_a_principal_that_is_unnamed_while_connected_is_refused_at_its_next_call(site: KerberosSite) -> None:
    with site.client(site.trust(ME)) as client:
        client.get(STATUS)
        connection = client._idle[0].sock
        site.names[ME] = STRANGER
        with pytest.raises(RemoteError) as caught:
            client.get(STATUS)
        assert caught.value.code == ForbiddenError.code
        assert connection is not None
        assert not client._idle


def test_a_connection_has_one_identity(site: KerberosSite, raw: RawClient) -> None:
    other = site.trust(f"HTTP/stranger.test@{REALM}")
    site.names[other.principal] = STRANGER
    assert raw.get(ticket(site.trust(ME), raw.binding)).read()
    status, reason = raw.refusal(ticket(other, raw.binding))
    assert status == 401
    assert ME in reason


def test_a_ticket_that_ends_while_connected_is_refused_at_the_next_call(
    tmp_path: Path, kdc: PrivateKdc
) -> None:
    now = [datetime.now(UTC)]
    with kerberos_site(tmp_path, kdc, clock=lambda: now[0]) as site:
        site.names[ME] = SOURCE
        with site.client(site.trust(ME)) as client:
            client.get(STATUS)
            now[0] += timedelta(hours=2)  # the KDC gives one
            with pytest.raises(UnauthenticatedError, match="expired meanwhile"):
                client.get(STATUS)
            assert client._idle == []


def test_our_side_opens_a_new_connection_before_its_ticket_ends(site: KerberosSite) -> None:
    with site.client(site.trust(ME)) as client:
        client.get(STATUS)
        connection = client._idle[0]
        assert connection.good_until is not None
        assert 60 < connection.good_until - time.monotonic() <= 3600
        connection.good_until = time.monotonic()
        client.get(STATUS)
        assert client._idle[0] is not connection
