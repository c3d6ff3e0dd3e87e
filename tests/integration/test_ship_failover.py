"""One client, several addresses of the service: the one that answers is used, the others are tried when it is gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from secondsite.errors import ConflictError, RemoteError, UnavailableError
from secondsite.model.ids import NodeId
from secondsite.ship.failover import ServiceClient
from secondsite.ship.http import Endpoint, HttpsServer, Request, Router
from secondsite.ship.identity import SERVICE, CertificateAuthority

pytestmark = pytest.mark.integration


class Services:
    """Two addresses; at each a service can be started and stopped."""

    def __init__(self, folder: Path) -> None:
        self.authority = CertificateAuthority.create("test")
        self.folder = folder
        self.ports = [_free_port(), _free_port()]
        self.calls: list[int] = []
        self.stack = ExitStack()
        self.servers: dict[int, HttpsServer] = {}
        me = self.authority.issue_credentials(NodeId("node-1"), folder / "node-1")
        endpoints = [Endpoint("127.0.0.1", port, SERVICE) for port in self.ports]
        self.client = ServiceClient(endpoints, me, timeout_s=10)

    def start(self, number: int) -> None:
        def answer(request: Request) -> dict[str, object]:
            self.calls.append(number)
            if request.json().get("refuse"):
                raise ConflictError("no")
            return {"from": number}

        router = Router()
        router.add("POST", "/node/v1/poll", answer)
        credentials = self.authority.issue_credentials(SERVICE, self.folder / f"service-{number}")
        server = HttpsServer(("127.0.0.1", self.ports[number]), credentials, router, threads=2)
        server.start()
        self.servers[number] = server

    def stop(self, number: int) -> None:
        self.servers.pop(number).stop()

    def ask(self, **body: object) -> object:
        return self.client.post("/node/v1/poll", body)["from"]

    def close(self) -> None:
        self.client.close()
        for number in list(self.servers):
            self.stop(number)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    found = Services(tmp_path)
    yield found
    found.close()


def test_calls_follow_the_service_to_its_other_address_and_stay_there(services: Services) -> None:
    services.start(0)
    assert services.ask() == 0
    services.stop(0)
    services.start(1)
    assert services.ask() == 1
    services.start(0)
    assert services.ask() == 1, "it stays with who answers"
    assert services.client.endpoint.port == services.ports[1]
    services.stop(1)
    assert services.ask() == 0


def test_a_refusal_is_an_answer_and_is_not_asked_for_elsewhere(services: Services) -> None:
    services.start(0)
    services.start(1)
    with pytest.raises(RemoteError):
        services.ask(refuse=True)
    assert services.calls == [0]


def test_nobody_there_is_unavailable(services: Services) -> None:
    with pytest.raises(UnavailableError):
        services.ask()
