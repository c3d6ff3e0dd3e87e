"""A node that is removed from the vault is refused by every listener of it: at once, on open connections, and for good."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from secondsite.errors import ForbiddenError, SecondSiteError, UnauthenticatedError
from secondsite.fabric.fake import FakeFabric
from secondsite.model.ids import ItemId, NodeId
from secondsite.node.config import KerberosConfig, NodeConfig
from secondsite.node.daemon import NodeDaemon
from secondsite.node.enrol import EnrolRequest, enrol
from secondsite.ship.client import Endpoint, JsonClient, Trust
from secondsite.ship.kerberos import KerberosTrust
from secondsite.ship.protocol import ITEM_PATH, item_path
from support.private_kdc import REALM, PrivateKdc
from support.service_node import FakeNode, ServiceProcess, until

pytestmark = pytest.mark.integration

STATUS = item_path(ITEM_PATH, ItemId("0b6c7e9a-0000-4000-8000-00000000aaaa"))
TARGET, SOURCE = f"HTTP/target.test@{REALM}", f"HTTP/source.test@{REALM}"


@pytest.fixture(scope="module")
def kdc() -> Iterator[PrivateKdc]:
    kdc = PrivateKdc()
    yield kdc
    kdc.close()


class Vault:
    """A service, a node with both listeners, and another node that will be removed."""

    def __init__(self, folder: Path, kdc: PrivateKdc, stack: ExitStack) -> None:
        self.folder, self.kdc, self._stack = folder, kdc, stack
        self.service = ServiceProcess(folder / "data")
        stack.callback(self.service.close)
        token = self.service.init()
        self.service.start()
        self.api = stack.enter_context(self.service.people(token))
        self.api.post("/sites", json={"name": "here"}).raise_for_status()
        self.other = FakeNode(self.service.addresses, self._key(), "other", folder / "other")
        self.other.start()
        stack.callback(self.other.stop)
        nodes = self.service.addresses["nodes"]
        (folder / "storage").mkdir()
        request = EnrolRequest(
            service_host=nodes["host"],
            service_port=nodes["port"],
            key=self._key(),
            name="target",
            fabric="test:///default",
            storage=folder / "storage",
            listen_host="127.0.0.1",
            listen_port=0,
        )
        self.state = folder / "n"
        enrol(self.state, request)
        settings = KerberosConfig(
            TARGET, str(kdc.keytab(TARGET)), listen_host="127.0.0.1", peers={SOURCE: self.other.id}
        )
        replace(NodeConfig.load(self.state), kerberos=settings).save(self.state)
        self.start_node()

    def _key(self) -> str:
        return str(self.api.post("/registration-keys", json={"site": "here"}).json()["key"])

    def start_node(self) -> None:
        self.node = NodeDaemon(self.state, fabric=FakeFabric())
        self.node.start()

    def clients(self) -> dict[str, JsonClient]:
        """Return a client of each of the node's listeners, as the other node."""
        assert self.node.tickets is not None
        cache = self.folder / "tickets"
        ca = self.other.credentials.ca_file
        trusts: dict[str, tuple[Trust, tuple[str, int]]] = {
            "certificate": (self.other.credentials, self.node.listener.address),
            "ticket": (
                KerberosTrust(ca, SOURCE, self.kdc.keytab(SOURCE), TARGET, cache),
                self.node.tickets.listener.address,
            ),
        }
        return {
            how: self._stack.enter_context(JsonClient(Endpoint(*address, self.node.config.node), trust))
            for how, (trust, address) in trusts.items()
        }


@pytest.fixture
def vault(short_path: Path, kdc: PrivateKdc) -> Iterator[Vault]:
    with ExitStack() as stack, kdc.using():
        vault = Vault(short_path, kdc, stack)
        stack.callback(lambda: vault.node.close())
        yield vault


def test_the_service_shows_where_a_node_takes_tickets(vault: Vault) -> None:
    assert vault.node.tickets is not None
    host, port = vault.node.tickets.listener.address

    def shown() -> bool:
        found = vault.api.get("/nodes/target").json()["kerberos"]
        told = {"principal": TARGET, "service": TARGET, "address": f"{host}:{port}", "error": None}
        return bool(found == told)

    until(shown, "the node's inventory")


def refusal(client: JsonClient) -> str:
    """Return the code of the refusal; both are refused, but a node of the vault only for the item's sake."""
    with pytest.raises(SecondSiteError) as caught:
        client.get(STATUS)
    return caught.value.code


def test_a_node_that_is_removed_while_connected_is_out_at_once_and_for_good(vault: Vault) -> None:
    clients = vault.clients()
    open_sockets: dict[str, socket.socket | None] = {}
    for how, client in clients.items():
        assert refusal(client) == ForbiddenError.code, how
        client.get("/ship/v1/session")
        open_sockets[how] = client._idle[0].sock

    vault.api.delete("/nodes/other").raise_for_status()
    until(lambda: vault.other.id in vault.node.removals, "the news", 20)
    for how, client in clients.items():
        assert client._idle[0].sock is open_sockets[how], "the connection is still the one from before"
        with pytest.raises(UnauthenticatedError, match="removed from the vault"):
            client.get("/ship/v1/session")
        assert refusal(client) == UnauthenticatedError.code, how

    # The service is gone, the node starts again: it has not forgotten.
    vault.service.kill()
    vault.node.close()
    vault.start_node()
    for how, client in vault.clients().items():
        assert refusal(client) == UnauthenticatedError.code, how
    assert NodeId("somebody-else") not in vault.node.removals
