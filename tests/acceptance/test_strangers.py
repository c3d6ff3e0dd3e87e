"""Who is not enrolled gets nothing; who may only read changes nothing."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from secondsite.model.ids import NodeId
from secondsite.ship.identity import CertificateAuthority
from support.lab_story import LabStory, tls

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

SOMEBODY = "00000000-0000-4000-8000-000000000000"
NODES_CALLS = ["poll", "progress", "result", "report"]


@pytest.fixture(params=["without a certificate", "with a foreign one"])
def stranger(request: pytest.FixtureRequest, lab: LabStory, tmp_path: Path) -> ssl.SSLContext:
    context = tls()
    if "foreign" in request.param:
        # It names a node that exists: only the authority is another.
        authority = CertificateAuthority.create("another vault")
        mine = authority.issue_credentials(
            NodeId(lab.facts["sites"]["primary"]["node_id"]), tmp_path / "mine"
        )
        context.load_cert_chain(mine.cert_file, mine.key_file)
    return context


def knock(context: ssl.SSLContext, port: int, method: str, path: str, body: bytes = b"{}") -> int | None:
    """Return the status of the answer; None if there was none."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (ssl.SSLError, OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def test_a_stranger_gets_nothing_from_a_node(lab: LabStory, stranger: ssl.SSLContext) -> None:
    state = Path(lab.facts["sites"]["secondary"]["node_state"])
    port = int(json.loads((state / "ready.json").read_text())["listen"].rpartition(":")[2])
    for method, path in [
        ("GET", f"/ship/v1/items/{SOMEBODY}"),
        ("POST", f"/ship/v1/items/{SOMEBODY}/points"),
        ("GET", "/"),
    ]:
        assert knock(stranger, port, method, path) is None, f"{method} {path} was answered"


def test_a_stranger_gets_nothing_from_the_nodes_face(lab: LabStory, stranger: ssl.SSLContext) -> None:
    for call in NODES_CALLS:
        status = knock(stranger, lab.lab.node_port, "POST", f"/node/v1/{call}")
        assert status in {None, 401, 403}, f"{call}: {status}"
    key = b'{"key": "' + SOMEBODY.encode() + b'.secret.00", "csr": "", "name": "x", "roles": []}'
    status = knock(stranger, lab.lab.node_port, "POST", "/node/v1/enrol", key)
    assert status is None or 400 <= status < 500


LOGIN = ("POST", "/api/v1/login")
OWN = {("POST", "/api/v1/logout"), ("POST", "/api/v1/password"), ("DELETE", f"/api/v1/sessions/{SOMEBODY}")}
"""Routes with which a Reader changes what is its own, and nothing else: a token has no session and no password."""


def routes(lab: LabStory) -> list[tuple[str, str]]:
    """Every route that is not a GET, with something in place of each parameter."""
    with client(lab, lab.facts["token"]) as http_client:
        document: dict[str, Any] = http_client.get("/api/v1/openapi.json").json()
    return [
        (method.upper(), re.sub(r"{[^}]+}", SOMEBODY, path))
        for path, methods in document["paths"].items()
        for method in methods
        if method != "get"
    ]


def client(lab: LabStory, token: str | None) -> httpx.Client:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    verify = ssl.create_default_context(cafile=lab.facts["ca"])
    return httpx.Client(base_url=lab.facts["url"], headers=headers, verify=verify, timeout=20)


def test_a_reader_changes_nothing_and_nobody_without_a_token_sees_anything(lab: LabStory) -> None:
    found = routes(lab)
    assert len(found) > 15
    token = lab.cli("vault", "create-token", "watcher", "--role", "Reader")["token"]
    with client(lab, token) as reader, client(lab, None) as nobody, client(lab, "sst_" + "0" * 64) as liar:
        assert {LOGIN, *OWN} <= set(found)
        for method, path in found:
            if (method, path) == LOGIN:
                wrong = {"name": "watcher", "password": "a wrong password"}
                assert nobody.request(method, path, json=wrong).status_code == 401
                continue
            assert nobody.request(method, path, json={}).status_code == 401, (method, path)
            status = reader.request(method, path, json={}).status_code
            assert 400 <= status < 500 if (method, path) in OWN else status == 403, (method, path, status)
        assert reader.get("/api/v1/items").status_code == 200
        assert nobody.get("/api/v1/items").status_code == 401
        assert liar.get("/api/v1/items").status_code == 401
