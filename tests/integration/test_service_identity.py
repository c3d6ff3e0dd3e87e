"""Nodes' identities against a real service: keys that run out, certificates that are renewed, nodes that were removed."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from secondsite.errors import SecondSiteError, UnauthenticatedError
from secondsite.model.ids import NodeId
from secondsite.node.renewal import Renewal
from secondsite.service.daemon import Options, Service, init
from secondsite.ship.client import Endpoint, JsonClient
from secondsite.ship.identity import NODE_VALIDITY, SERVICE, CertificateAuthority, Credentials
from support.service_node import FakeNode

pytestmark = pytest.mark.integration
WEEK = timedelta(days=7)


class Vault:
    """A service in this process, and a Contributor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made = init(folder / "data", "test")
        self.service = Service(folder / "data", Options(("127.0.0.1", 0), ("127.0.0.1", 0), node_threads=8))
        self.service.start()
        self.api = httpx.Client(
            base_url=self.service.addresses["url"],
            verify=ssl.create_default_context(cafile=str(made.ca)),
            headers={"Authorization": f"Bearer {made.token}"},
        )
        self.api.post("/sites", json={"name": "ams"})

    def key(self, **body: object) -> str:
        answer = self.api.post("/registration-keys", json={"site": "ams", **body})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def node(self, name: str, key: str) -> FakeNode:
        return FakeNode(self.service.addresses, key, name, self.folder / name)

    def ageing(self, node: NodeId, left: timedelta) -> Credentials:
        """Credentials of a node as they are when so much of their life is left."""
        issued = datetime.now(UTC) + left - NODE_VALIDITY
        ca = self.folder / "data" / "ca"
        authority = CertificateAuthority.load(ca / "ca.pem", ca / "ca.key", clock=lambda: issued)
        return authority.issue_credentials(node, self.folder / f"ageing-{node}")

    def renewal(self, credentials: Credentials, renewed: threading.Event) -> Renewal:
        nodes = self.service.addresses["nodes"]
        client = JsonClient(Endpoint(nodes["host"], nodes["port"], SERVICE), credentials)
        return Renewal(credentials, client, renewed.set, lambda: datetime.now(UTC))

    def close(self) -> None:
        self.api.close()
        self.service.stop()


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    found = Vault(tmp_path_factory.mktemp("identity"))
    yield found
    found.close()


def test_a_key_enrols_one_node_unless_it_was_made_for_more(vault: Vault) -> None:
    key = vault.key()
    vault.node("one", key)
    with pytest.raises(UnauthenticatedError, match="used up"):
        vault.node("two", key)
    key = vault.key(uses_max=2)
    vault.node("two", key)
    vault.node("three", key)
    with pytest.raises(UnauthenticatedError, match="used up"):
        vault.node("four", key)
    key = vault.key(uses_max=None)
    vault.node("four", key)
    vault.node("five", key)


def test_of_two_nodes_that_use_the_last_use_at_once_one_gets_in(vault: Vault) -> None:
    key = vault.key()
    outcomes: list[str] = []

    def enrol(name: str) -> None:
        try:
            vault.node(name, key)
            outcomes.append("in")
        except SecondSiteError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=enrol, args=(f"racer-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in", *["unauthenticated"] * 3]


def test_a_key_is_listed_without_its_secret_and_can_be_revoked(vault: Vault) -> None:
    key = vault.key()
    identifier = key.partition(".")[0]
    listed = {row["id"]: row for row in vault.api.get("/registration-keys").json()}
    row = listed[identifier]
    life = datetime.fromisoformat(row["expires"]) - datetime.fromisoformat(row["created"])
    assert (row["uses"], row["uses_max"], row["key"], life) == (0, 1, None, timedelta(days=5))
    assert vault.api.delete(f"/registration-keys/{identifier}").status_code == 204
    with pytest.raises(UnauthenticatedError, match="not known"):
        vault.node("late", key)


def test_a_refused_enrolment_stands_in_the_trail(vault: Vault) -> None:
    key = vault.key()
    with pytest.raises(UnauthenticatedError):
        vault.node("forger", f"{key.split('.')[0]}.{'0' * 48}.{key.split('.')[2]}")
    (line,) = vault.api.get("/audit", params={"actor": "forger"}).json()
    assert (line["method"], line["path"], line["outcome"]) == ("NODE", "enrol", "refused")
    assert line["detail"] == "the registration key is not known"


def test_a_node_whose_certificate_expires_in_a_week_renews_it_by_itself(vault: Vault) -> None:
    node = vault.node("ageing", vault.key())
    credentials = vault.ageing(node.id, WEEK)
    before, renewed = credentials.not_after, threading.Event()
    assert before < datetime.now(UTC) + WEEK + timedelta(hours=1)
    renewal = vault.renewal(credentials, renewed)
    renewal.start()  # as the daemon does; its first look is at once
    assert renewed.wait(30)
    renewal.close()
    assert credentials.not_after > before + timedelta(days=300)
    nodes = vault.service.addresses["nodes"]
    with JsonClient(Endpoint(nodes["host"], nodes["port"], SERVICE), credentials) as client:
        assert client.post("/node/v1/poll", {"wait_s": 0, "running": []}) == {"commands": []}
    (line, _enrolment) = vault.api.get("/audit", params={"actor": "ageing"}).json()
    assert (line["path"], line["outcome"]) == ("renew", "done")


def test_a_node_that_was_removed_cannot_renew(vault: Vault) -> None:
    node = vault.node("gone", vault.key())
    credentials = vault.ageing(node.id, WEEK)
    assert vault.api.delete("/nodes/gone").status_code == 204
    before = credentials.cert_file.read_bytes()
    with pytest.raises(UnauthenticatedError, match="removed"):
        vault.renewal(credentials, threading.Event()).look()
    assert credentials.cert_file.read_bytes() == before


def test_an_expired_certificate_renews_nothing(vault: Vault) -> None:
    node = vault.node("asleep", vault.key())
    credentials = vault.ageing(node.id, timedelta(seconds=-1))
    with pytest.raises(UnauthenticatedError, match="expired"):
        vault.renewal(credentials, threading.Event()).look()
