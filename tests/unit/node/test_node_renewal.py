"""A node's certificate is renewed before it ends, and a crash amid the exchange leaves a usable pair."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secondsite.model.ids import NodeId
from secondsite.node.renewal import Renewal, finish
from secondsite.ship.client import Endpoint, JsonClient
from secondsite.ship.http import HttpsServer, Request, Router
from secondsite.ship.identity import SERVICE, CertificateAuthority, Credentials, node_id_of

NODE = NodeId("node-1")


@pytest.fixture
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("test")


def renewing_service(authority: CertificateAuthority, folder: Path) -> HttpsServer:
    def renew(request: Request) -> dict[str, str]:
        certificate = authority.issue(str(request.json()["csr"]).encode(), request.known_peer)
        return {"certificate": certificate.decode(), "ca": authority.pem.decode()}

    router = Router()
    router.add("POST", "/node/v1/renew", renew)
    return HttpsServer(("127.0.0.1", 0), authority.issue_credentials(SERVICE, folder), router)


def renewal_of(
    credentials: Credentials, server: HttpsServer, clock: Callable[[], datetime], renewed: list[str]
) -> Renewal:
    host, port = server.address
    client = JsonClient(Endpoint(host, port, SERVICE), credentials)
    return Renewal(credentials, client, lambda: renewed.append("reloaded"), clock)


def test_a_fresh_certificate_is_left_alone(authority: CertificateAuthority, tmp_path: Path) -> None:
    credentials = authority.issue_credentials(NODE, tmp_path / "node")
    before = credentials.cert_file.read_bytes()
    renewed: list[str] = []
    with renewing_service(authority, tmp_path / "service") as server:
        assert not renewal_of(credentials, server, lambda: datetime.now(UTC), renewed).look()
    assert credentials.cert_file.read_bytes() == before
    assert not renewed


def test_a_certificate_in_its_last_third_is_renewed_with_a_new_key(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    credentials = authority.issue_credentials(NODE, tmp_path / "node", validity=timedelta(days=30))
    key, ends = credentials.key_file.read_bytes(), credentials.not_after
    renewed: list[str] = []
    with renewing_service(authority, tmp_path / "service") as server:
        assert renewal_of(credentials, server, lambda: ends - timedelta(days=5), renewed).look()
    assert credentials.not_after > ends
    assert credentials.key_file.read_bytes() != key
    assert node_id_of(credentials.cert_file.read_bytes()) == NODE
    assert renewed == ["reloaded"]
    credentials.client_context()  # key and certificate belong together


@pytest.mark.parametrize(
    "written", [("node.key",), ("node.key", "ca.pem"), ("node.key", "ca.pem", "node.pem")]
)
def test_a_crash_amid_the_exchange_leaves_a_usable_pair(
    authority: CertificateAuthority, tmp_path: Path, written: tuple[str, ...]
) -> None:
    credentials = authority.issue_credentials(NODE, tmp_path / "node")
    following = authority.issue_credentials(NODE, tmp_path / "made")
    (tmp_path / "node" / "next").mkdir()
    for name in written:
        (tmp_path / "node" / "next" / name).write_bytes((tmp_path / "made" / name).read_bytes())
    whole = len(written) == 3
    if whole:  # the crash came after the key was exchanged and before the certificate was
        credentials.key_file.write_bytes(following.key_file.read_bytes())
        with pytest.raises(Exception, match="do not belong together"):
            credentials.client_context()
    assert finish(credentials) is whole
    assert isinstance(credentials.client_context(), ssl.SSLContext)
    assert not finish(credentials)
