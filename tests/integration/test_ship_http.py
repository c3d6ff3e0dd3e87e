"""The HTTPS server and client over real TLS: who gets in, what is bounded, what errors become."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secondsite.errors import (
    OutOfSequenceError,
    RemoteError,
    Retry,
    SecondSiteError,
    UnauthenticatedError,
    UnavailableError,
)
from secondsite.model.ids import NodeId
from secondsite.ship.http import (
    Endpoint,
    HttpsServer,
    JsonClient,
    Limits,
    Request,
    Response,
    Router,
    add_ca_route,
    fetch_ca,
    is_code,
)
from secondsite.ship.identity import CaOnly, CertificateAuthority, ClientCertificates, Credentials

SERVER, CLIENT, OTHER = NodeId("node-target"), NodeId("node-source"), NodeId("node-other")


@dataclass
class Site:
    """A running server with an authority around it."""

    folder: Path
    authority: CertificateAuthority
    server: HttpsServer
    calls: list[Request] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.address[1]

    def credentials(self, node: NodeId, **options: timedelta) -> Credentials:
        return self.authority.issue_credentials(
            node, self.folder / f"{node}-{len(list(self.folder.iterdir()))}", **options
        )

    def client(
        self, trust: Credentials | CaOnly | None = None, name: NodeId = SERVER, timeout_s: float = 10
    ) -> JsonClient:
        return JsonClient(
            Endpoint("127.0.0.1", self.port, name), trust or self.credentials(CLIENT), timeout_s=timeout_s
        )


def router_of(calls: list[Request]) -> Router:
    router = Router()

    def echo(request: Request) -> dict[str, object]:
        document = request.json()
        calls.append(request)
        return {"peer": request.peer, "got": document, **request.params}

    def fail(request: Request) -> Response:
        if request.params["how"] == "typed":
            raise OutOfSequenceError("behind", have=3)
        raise RuntimeError("secret detail")

    router.add("POST", "/echo/{name}", echo)
    router.add("POST", "/small", echo, body_max=100)
    router.add("POST", "/fail/{how}", fail)
    router.add("GET", "/open", lambda request: {"peer": request.peer}, peer_required=False)
    router.add("GET", "/closed", lambda request: {"peer": request.peer})
    router.add("GET", "/big", lambda _: Response(body=(b"x" * 1000 for _ in range(1000)), length=1_000_000))
    router.add("GET", "/moved", lambda _: Response("302 Found", headers={"Location": "/open"}))
    return router


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    options = dict(getattr(request, "param", {}))
    authority = CertificateAuthority.create("vault")
    calls: list[Request] = []
    router = router_of(calls)
    add_ca_route(router, authority.pem)
    credentials = authority.issue_credentials(SERVER, tmp_path / "server")
    options.setdefault("threads", 4)
    with HttpsServer(("127.0.0.1", 0), credentials, router, **options) as server:
        yield Site(tmp_path, authority, server, calls)


optional = pytest.mark.parametrize(
    "site", [{"client_certificates": ClientCertificates.OPTIONAL}], indirect=True
)


def test_call_carries_json_both_ways_and_the_peer(site: Site) -> None:
    with site.client() as client:
        answer = client.post("/echo/some-name", {"a": [1, "ä"]})
    assert answer == {"peer": CLIENT, "got": {"a": [1, "ä"]}, "name": "some-name"}


def test_connection_is_kept_between_calls(site: Site) -> None:
    with site.client() as client:
        for _ in range(3):
            client.get("/closed")
        assert len(client._idle) == 1
        first = client._idle[0].sock
        client.get("/closed")
        assert client._idle[0].sock is first


def test_call_after_the_server_closed_the_kept_connection_succeeds(site: Site) -> None:
    with site.client() as client:
        client.get("/closed")
        client._idle[0].sock.shutdown(socket.SHUT_RDWR)
        assert client.get("/closed") == {"peer": CLIENT}


def test_client_is_safe_in_threads(site: Site) -> None:
    results: list[dict[str, object]] = []
    with site.client() as client:

        def call(index: int) -> None:
            results.extend(client.post(f"/echo/{index}", {"i": index}) for _ in range(5))

        threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 20
    assert all(result["got"] == {"i": int(str(result["name"]))} for result in results)


def test_without_a_certificate_nobody_gets_in(site: Site) -> None:
    with site.client(CaOnly(site.authority.pem)) as client, pytest.raises(UnauthenticatedError):
        client.get("/open")
    assert site.calls == []


def test_certificate_of_a_foreign_authority_gets_nothing(site: Site) -> None:
    foreign = CertificateAuthority.create("foreign").issue_credentials(CLIENT, site.folder / "foreign")
    (site.folder / "foreign" / "ca.pem").write_bytes(site.authority.pem)
    with (
        site.client(foreign) as client,
        pytest.raises(UnauthenticatedError, match="does not know the authority"),
    ):
        client.post("/echo/x", {"secret": 1})
    assert site.calls == []


def test_expired_certificate_of_the_client_gets_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    past = CertificateAuthority(
        site.authority._certificate, site.authority._key, lambda: datetime.now(UTC) - timedelta(days=10)
    )
    expired = past.issue_credentials(CLIENT, site.folder / "expired", validity=timedelta(days=1))
    monkeypatch.setattr(
        "secondsite.ship.tls.utc_now", lambda: datetime.now(UTC) - timedelta(days=9, hours=12)
    )
    with (
        site.client(expired) as client,
        pytest.raises(UnauthenticatedError, match="our certificate has expired"),
    ):
        client.post("/echo/x", {})
    assert site.calls == []


def test_server_with_an_expired_certificate_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    past = CertificateAuthority(
        site.authority._certificate, site.authority._key, lambda: datetime.now(UTC) - timedelta(days=10)
    )
    expired = past.issue_credentials(SERVER, site.folder / "expired", validity=timedelta(days=1))
    with monkeypatch.context() as patch:
        patch.setattr("secondsite.ship.tls.utc_now", lambda: datetime.now(UTC) - timedelta(days=9, hours=12))
        site.server.reload(expired)
    with site.client() as client, pytest.raises(UnauthenticatedError, match="peer's certificate has expired"):
        client.get("/closed")


def test_other_node_at_the_address_is_refused(site: Site) -> None:
    with (
        site.client(name=OTHER) as client,
        pytest.raises(UnauthenticatedError, match="another node than node-other"),
    ):
        client.post("/echo/x", {"secret": 1})
    assert site.calls == []


def test_server_of_a_foreign_authority_is_refused(site: Site) -> None:
    trust = CaOnly(CertificateAuthority.create("foreign").pem)
    with site.client(trust) as client, pytest.raises(UnauthenticatedError, match="not from our authority"):
        client.get("/open")


def test_old_tls_is_refused(site: Site) -> None:
    context = site.credentials(CLIENT).client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw, server_hostname=SERVER)


@optional
def test_optional_certificates_let_strangers_reach_open_routes_only(site: Site) -> None:
    with site.client(CaOnly(site.authority.pem)) as client:
        assert client.get("/open") == {"peer": None}
        with pytest.raises(UnauthenticatedError):
            client.get("/closed")
    with site.client() as client:
        assert client.get("/closed") == {"peer": CLIENT}


@optional
def test_headers_cannot_name_the_peer(site: Site) -> None:
    forged = {
        "secondsite.peer": CLIENT,
        "Secondsite-Peer": CLIENT,
        "SSL_CLIENT_SAN_DNS_0": CLIENT,
        "SSL-CLIENT-S-DN-CN": CLIENT,
    }
    with site.client(CaOnly(site.authority.pem)) as client:
        assert client.request("GET", "/open", headers=forged).json() == {"peer": None}
        with pytest.raises(UnauthenticatedError):
            client.request("GET", "/closed", headers=forged)


def test_revocation_bites_on_an_open_connection(tmp_path: Path) -> None:
    authority = CertificateAuthority.create("vault")
    revoked: set[int] = set()
    server = HttpsServer(
        ("127.0.0.1", 0),
        authority.issue_credentials(SERVER, tmp_path / "s"),
        router_of([]),
        is_revoked=revoked.__contains__,
        threads=2,
    )
    mine = authority.issue_credentials(CLIENT, tmp_path / "c")
    with server, JsonClient(Endpoint(*server.address, SERVER), mine) as client:
        assert client.get("/closed") == {"peer": CLIENT}
        from secondsite.ship.identity import load_certificate

        revoked.add(load_certificate(mine.cert_file.read_bytes()).serial_number)
        with pytest.raises(UnauthenticatedError, match="revoked"):
            client.get("/closed")
        with pytest.raises(UnauthenticatedError, match="revoked"):
            client.get("/closed")


def test_certificate_that_expires_on_an_open_connection_ends_it(tmp_path: Path) -> None:
    authority = CertificateAuthority.create("vault")
    now = [datetime.now(UTC)]
    server = HttpsServer(
        ("127.0.0.1", 0),
        authority.issue_credentials(SERVER, tmp_path / "s"),
        router_of([]),
        clock=lambda: now[0],
        threads=2,
    )
    mine = authority.issue_credentials(CLIENT, tmp_path / "c", validity=timedelta(days=5))
    with server, JsonClient(Endpoint(*server.address, SERVER), mine) as client:
        assert client.get("/closed") == {"peer": CLIENT}
        now[0] += timedelta(days=6)
        with pytest.raises(UnauthenticatedError, match="expired meanwhile"):
            client.get("/closed")


def test_renewed_certificate_serves_new_connections(site: Site) -> None:
    renewed = site.credentials(OTHER)
    with site.client() as before, site.client(name=OTHER) as after:
        assert before.get("/closed") == {"peer": CLIENT}
        site.server.reload(renewed)
        assert before.get("/closed") == {"peer": CLIENT}, "the open connection goes on"
        assert after.get("/closed") == {"peer": CLIENT}


def test_client_reload_shows_the_new_certificate(site: Site) -> None:
    with site.client() as client:
        assert client.get("/closed") == {"peer": CLIENT}
        client.reload(site.credentials(OTHER))
        assert client.get("/closed") == {"peer": OTHER}


def test_error_keeps_code_retry_class_and_attributes(site: Site) -> None:
    with site.client() as client, pytest.raises(RemoteError) as caught:
        client.post("/fail/typed", {})
    assert is_code(caught.value, "out_of_sequence")
    assert caught.value.retry is Retry.COMPARE
    assert caught.value.attributes == {"have": 3}


def test_unforeseen_exception_is_internal_and_says_nothing(site: Site) -> None:
    with site.client() as client, pytest.raises(RemoteError) as caught:
        client.post("/fail/other", {})
    assert caught.value.code == "internal"
    assert caught.value.retry is Retry.LATER
    assert "secret" not in str(caught.value.to_dict())


@pytest.mark.parametrize("path", ["/nothing", "/echo/a%20b", "/echo/..%2f..%2fetc", "/echo/%00", "/echo/a/b"])
def test_unknown_or_odd_paths_are_not_found(site: Site, path: str) -> None:
    with site.client() as client, pytest.raises(RemoteError) as caught:
        client.post(path, {})
    assert caught.value.code == "not_found"


def test_too_large_a_body_is_refused_and_the_connection_goes_on(site: Site) -> None:
    with site.client() as client:
        with pytest.raises(RemoteError) as caught:
            client.post("/small", {"x": "y" * 100_000})
        assert caught.value.code == "too_large"
        assert client.get("/closed") == {"peer": CLIENT}
    assert site.calls == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe"])
def test_body_that_is_no_json_object_is_invalid(site: Site, body: bytes) -> None:
    with site.client() as client, pytest.raises(RemoteError) as caught:
        client.request("POST", "/echo/x", body=body)
    assert caught.value.code == "invalid_input"


def test_redirect_is_not_followed(site: Site) -> None:
    with site.client() as client, pytest.raises(UnavailableError, match="302"):
        client.get("/moved")


def test_answer_is_bounded(site: Site) -> None:
    with site.client() as client:
        assert len(client.request("GET", "/big").body) == 1_000_000
        with pytest.raises(UnavailableError, match="too large"):
            client.request("GET", "/big", answer_max=1000)


def test_nobody_listening_is_unavailable(site: Site) -> None:
    site.server.stop()
    with site.client() as client, pytest.raises(UnavailableError):
        client.get("/open")


def raw_call(site: Site, data: bytes) -> bytes:
    """Send bytes over a proper session and return what comes back until the server closes or has answered."""
    context = site.credentials(CLIENT).client_context()
    with (
        socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=SERVER) as tls,
    ):
        tls.sendall(data)
        return tls.recv(65536)


@pytest.mark.parametrize(
    "data",
    [
        b"POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\n\r\n",
        b"POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n",
        b"POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: b\r\n\r\n",
        b"POST /small HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n"
        + b"{" * 255
        + b"\r\n0\r\n\r\n",
        b"POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{}",
        b"POST /echo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"GET /open HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"\x00\x01garbage\r\n\r\n",
    ],
    ids=[
        "chunked and length",
        "extension",
        "overlong chunk",
        "trailer",
        "too many chunks",
        "negative",
        "plus",
        "float",
        "large header",
        "long path",
        "garbage",
    ],
)
def test_malformed_requests_get_a_4xx(site: Site, data: bytes) -> None:
    try:
        answer = raw_call(site, data)
    except OSError:
        answer = b"HTTP/1.1 4"  # closed with bytes unread: the reset may overtake the answer
    assert answer.startswith(b"HTTP/1.1 4")
    assert site.calls == []
    with site.client() as client:
        assert client.get("/closed") == {"peer": CLIENT}, "the server goes on"


def test_chunked_body_arrives_whole(site: Site) -> None:
    chunks = b'7\r\n{"a": "\r\n3\r\nxyz\r\n2\r\n"}\r\n0\r\n\r\n'
    answer = raw_call(
        site, b"POST /echo/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    )
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert [call.body.received for call in site.calls] == [12]


def test_stop_joins_all_threads(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    authority = CertificateAuthority.create("vault")
    credentials = authority.issue_credentials(SERVER, tmp_path / "s")
    server = HttpsServer(("127.0.0.1", 0), credentials, router_of([]), threads=3)
    server.start()
    with JsonClient(Endpoint(*server.address, SERVER), credentials) as client:
        client.get("/closed")
        ours = set(threading.enumerate()) - before
        assert all(thread.daemon for thread in ours), "a process that ends without stop is not held up"
        server.stop()
        server.stop()
    assert [t for t in set(threading.enumerate()) - before if "_serve_unservicable" not in t.name] == []


def test_port_in_use_is_unavailable(site: Site) -> None:
    second = HttpsServer(site.server.address, site.credentials(SERVER), router_of([]))
    with pytest.raises(UnavailableError, match="cannot listen"):
        second.start()


# -- slow clients -------------------------------------------------------------------------------------------

quick_limits = pytest.mark.parametrize(
    "site",
    [{"limits": Limits(handshake_s=1, head_s=1, stall_s=1, idle_s=2), "threads": 1}],
    indirect=True,
)


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


@quick_limits
def test_silent_connections_keep_no_one_out(site: Site) -> None:
    silent = [socket.create_connection(("127.0.0.1", site.port), timeout=10) for _ in range(20)]
    try:
        start = time.monotonic()
        with site.client() as client:
            assert client.get("/closed") == {"peer": CLIENT}
        # Each would hold the one worker for 1 s.
        assert time.monotonic() - start < 5, "one worker, twenty silent connections: none may hold it"
    finally:
        for sock in silent:
            sock.close()


@quick_limits
def test_unfinished_handshake_is_dropped(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00")
        read_to_end(sock)
    with site.client() as client:
        assert client.get("/closed") == {"peer": CLIENT}


@quick_limits
@pytest.mark.parametrize(
    "data",
    [b"GET /closed HTTP/1.1\r\nHo", b"POST /echo/x HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"],
    ids=["head", "body"],
)
def test_stalled_request_is_dropped(site: Site, data: bytes) -> None:
    context = site.credentials(CLIENT).client_context()
    with (
        socket.create_connection(("127.0.0.1", site.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=SERVER) as tls,
    ):
        tls.sendall(data)
        answer = read_to_end(tls)
    assert answer.startswith(b"HTTP/1.1 4")
    assert site.calls == []
    with site.client() as client:
        assert client.get("/closed") == {"peer": CLIENT}


# -- the first contact --------------------------------------------------------------------------------------


@optional
def test_pinned_authority_is_fetched_and_then_verified(site: Site) -> None:
    pem = fetch_ca("127.0.0.1", site.port, site.authority.fingerprint)
    with site.client(CaOnly(pem)) as client:
        assert client.get("/open") == {"peer": None}


@optional
def test_wrong_pin_is_refused(site: Site) -> None:
    with pytest.raises(UnauthenticatedError, match="not the one"):
        fetch_ca("127.0.0.1", site.port, "0" * 64)


def test_all_errors_have_a_status() -> None:
    from secondsite.ship.routing import STATUS

    def subclasses(cls: type[SecondSiteError]) -> Iterator[type[SecondSiteError]]:
        for sub in cls.__subclasses__():
            yield sub
            yield from subclasses(sub)

    ours = {cls.code for cls in subclasses(SecondSiteError) if cls.__module__ == "secondsite.errors"}
    assert ours <= STATUS.keys()
