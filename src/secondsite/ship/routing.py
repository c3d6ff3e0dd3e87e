"""From a WSGI call to a handler and back: paths, bodies with bounds, errors as JSON.

Promises:

- Who the peer is comes from the connection alone (`admission` puts it into the environment under a key that no
  header can produce); a handler sees it as `request.peer`.
- A body is never larger than its route allows, and is read as a stream.
- Every error leaves as `{"error": to_dict()}` with a status chosen here; an exception that nobody foresaw leaves
  as "internal" without its details, which go to the log.

It does not parse what handlers know better (ids, numbers), and serves no files.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from secondsite.errors import InvalidInputError, NotFoundError, Retry, SecondSiteError, UnauthenticatedError
from secondsite.model.ids import NodeId
from secondsite.ship.body import Body, CutBodyError, TooLargeError
from secondsite.ship.peers import Peer

log = logging.getLogger("secondsite.ship")

PEER_KEY: Final = "secondsite.peer"
"""Environment key of the checked Peer (see `admission`), or None."""
STREAM_KEY: Final = "secondsite.stream"
"""Environment key of a callable that hands over the connection's bytes after the head. Who calls it must read the
body to its end or close."""
CLOSE_KEY: Final = "secondsite.close"
"""Environment key of a callable: the connection ends after this answer."""

JSON_BODY_MAX: Final = 16 << 20
DRAIN_PEER_MAX: Final = 80 << 20
DRAIN_ANONYMOUS_MAX: Final = 1 << 20
_CHUNK: Final = 256 << 10

_SEGMENT = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_LENGTH = re.compile(r"[0-9]{1,15}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

STATUS: Final[Mapping[str, str]] = {
    "invalid_input": "400 Bad Request",
    "cut_body": "400 Bad Request",
    "unauthenticated": "401 Unauthorized",
    "forbidden": "403 Forbidden",
    "not_found": "404 Not Found",
    "conflict": "409 Conflict",
    "operation_refused": "409 Conflict",
    "wrong_role": "409 Conflict",
    "stale_epoch": "409 Conflict",
    "out_of_sequence": "409 Conflict",
    "tracking_lost": "409 Conflict",
    "too_large": "413 Content Too Large",
    "corrupt": "422 Unprocessable Content",
    "pinned": "423 Locked",
    "locked_out": "429 Too Many Requests",
    "internal": "500 Internal Server Error",
    "unsupported": "501 Not Implemented",
    "unavailable": "503 Service Unavailable",
    "timeout": "504 Gateway Timeout",
    "no_space": "507 Insufficient Storage",
}
"""The status of each error code. People and programs look at the code; the status serves plain HTTP tools."""


@dataclass(slots=True)
class Request:
    """One call. `peer` is the node that the connection has proved to be, by certificate or ticket, or None."""

    method: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: Body
    certificate: Peer | None
    """What the peer has shown: a certificate, or a Kerberos ticket in its place."""
    remote: str

    @property
    def peer(self) -> NodeId | None:
        """The node that calls."""
        return None if self.certificate is None else self.certificate.node

    @property
    def known_peer(self) -> NodeId:
        """The node that calls; UnauthenticatedError if it has shown nothing."""
        if self.certificate is None:
            raise UnauthenticatedError(
                "this call needs a node's certificate or ticket", hint="enrol the node first"
            )
        return self.certificate.node

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object; InvalidInputError if it is none."""
        return parse_object(self.body.read_all())


@dataclass(slots=True)
class Response:
    """One answer. A body that is no `bytes` is streamed and needs `length`."""

    status: str = "200 OK"
    body: bytes | Iterable[bytes] = b""
    length: int | None = None
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, document: Mapping[str, Any], status: str = "200 OK") -> Response:
        """Return an answer with a JSON object."""
        return cls(status, json.dumps(document).encode(), content_type="application/json")


Handler = Callable[[Request], "Response | Mapping[str, Any]"]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Environ = dict[str, Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object from outside; InvalidInputError if it is none.

    A number beyond any float (`1e999`) and half a surrogate pair are none either: a database or an answer that took
    them could not be read again (RFC 8259, sections 6 and 8.2).
    """
    try:
        document = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(data):
            json.dumps(
                document, ensure_ascii=False
            ).encode()  # a pair of them has become one character by now
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("the body is not JSON", reason=str(error)[:200]) from error
    if not isinstance(document, dict):
        raise InvalidInputError("the body is not a JSON object")
    return document


def error_response(error: SecondSiteError) -> Response:
    """Return the answer that carries `error`."""
    return Response.json({"error": error.to_dict()}, STATUS.get(error.code, STATUS["internal"]))


@dataclass(frozen=True, slots=True)
class _Route:
    segments: tuple[str, ...]
    handler: Handler
    body_max: int
    peer_required: bool


class Router:
    """A WSGI application made of routes. Add all routes before the server starts."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, int], list[_Route]] = {}

    def add(
        self,
        method: str,
        template: str,
        handler: Handler,
        *,
        body_max: int | None = None,
        peer_required: bool = True,
    ) -> None:
        """Serve `method` on `template`, a path such as "/ship/v1/items/{item}".

        A parameter stands for one segment of letters, digits and `._~-`. `body_max` in bytes: JSON_BODY_MAX for
        POST and PUT, none otherwise. Without a peer's certificate the call is refused unless `peer_required` is
        False.
        """
        if body_max is None:
            body_max = JSON_BODY_MAX if method in {"POST", "PUT"} else 0
        segments = tuple(template.strip("/").split("/"))
        self._routes.setdefault((method, len(segments)), []).append(
            _Route(segments, handler, body_max, peer_required)
        )

    def route(
        self, method: str, template: str, *, body_max: int | None = None, peer_required: bool = True
    ) -> Callable[[Handler], Handler]:
        """Return `add` as a decorator."""

        def register(handler: Handler) -> Handler:
            self.add(method, template, handler, body_max=body_max, peer_required=peer_required)
            return handler

        return register

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one call (WSGI)."""
        certificate: Peer | None = environ.get(PEER_KEY)
        body: Body | None = None
        try:
            body = _body_of(environ)
            response = self._answer(environ, body, certificate)
        except SecondSiteError as error:
            response = error_response(error)
        except Exception:
            log.exception("%s %s failed", environ.get("REQUEST_METHOD"), environ.get("PATH_INFO"))
            fields = SecondSiteError("internal error", hint="the peer's log has the details").to_dict()
            response = Response.json({"error": fields | {"retry": Retry.LATER.value}}, STATUS["internal"])
        if not _drain(body, DRAIN_ANONYMOUS_MAX if certificate is None else DRAIN_PEER_MAX):
            environ[CLOSE_KEY]()
        return _send(response, start_response)

    def _answer(self, environ: Environ, body: Body, certificate: Peer | None) -> Response:
        method, path = str(environ["REQUEST_METHOD"]), str(environ["PATH_INFO"])
        route, params = self._find(method, path)
        if route.peer_required and certificate is None:
            raise UnauthenticatedError(
                "this call needs a node's certificate or ticket", hint="enrol the node first"
            )
        body.limit = route.body_max
        if body.length is not None and body.length > route.body_max:
            raise TooLargeError("the body is too large", length=body.length, limit=route.body_max)
        request = Request(
            method=method,
            path=path,
            params=params,
            query=dict(parse_qsl(str(environ.get("QUERY_STRING", ""))[:4096])),
            headers=_headers_of(environ),
            body=body,
            certificate=certificate,
            remote=str(environ.get("REMOTE_ADDR", "")),
        )
        answer = route.handler(request)
        return answer if isinstance(answer, Response) else Response.json(answer)

    def _find(self, method: str, path: str) -> tuple[_Route, dict[str, str]]:
        segments = path.strip("/").split("/")
        for route in self._routes.get((method, len(segments)), ()):
            params: dict[str, str] = {}
            for pattern, segment in zip(route.segments, segments, strict=True):
                if pattern.startswith("{"):
                    if not _SEGMENT.fullmatch(segment):
                        break
                    params[pattern[1:-1]] = segment
                elif pattern != segment:
                    break
            else:
                return route, params
        raise NotFoundError(f"{method[:16]} {path[:200]} is not served here")


def _body_of(environ: Environ) -> Body:
    length = environ.get("CONTENT_LENGTH")
    if environ.get("HTTP_TRANSFER_ENCODING"):
        if length is not None:
            environ[CLOSE_KEY]()
            raise InvalidInputError("a chunked body has no Content-Length")
        return Body(environ[STREAM_KEY](), None)
    text = str(length or "0")
    if not _LENGTH.fullmatch(text):
        environ[CLOSE_KEY]()
        raise InvalidInputError("the Content-Length is malformed")
    return Body(environ[STREAM_KEY](), int(text))


def _headers_of(environ: Environ) -> dict[str, str]:
    headers = {
        key[5:].replace("_", "-").lower(): str(value)
        for key, value in environ.items()
        if key.startswith("HTTP_")
    }
    if "CONTENT_TYPE" in environ:
        headers["content-type"] = str(environ["CONTENT_TYPE"])
    return headers


def _drain(body: Body | None, limit: int) -> bool:
    """Read away what the handler left, so that the connection can be kept; False if it can't be.

    Closing with unread bytes makes TCP send a reset, which can destroy the answer before the peer has read it.
    """
    if body is None or body.broken or (body.length or 0) > limit:
        return False
    body.limit = limit
    try:
        for _ in body.chunks(_CHUNK):
            pass
    except (CutBodyError, TooLargeError):
        return False
    return True


def _send(response: Response, start_response: StartResponse) -> Iterable[bytes]:
    body = response.body
    length = len(body) if isinstance(body, bytes) else response.length
    if length is None:
        raise ValueError("a streamed answer needs its length")
    start_response(
        response.status,
        [
            ("Content-Type", response.content_type),
            ("Content-Length", str(length)),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *response.headers.items(),
        ],
    )
    return [body] if isinstance(body, bytes) else body


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:40]} is beyond any number that can be kept")
    return number
