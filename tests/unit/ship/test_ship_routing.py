"""Routing without a socket: paths, headers, bodies whole, byte by byte and as garbage."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite.errors import InvalidInputError
from secondsite.ship.body import Body, CutBodyError, TooLargeError
from secondsite.ship.routing import CLOSE_KEY, STREAM_KEY, Request, Response, Router, parse_object


def call(router: Router, method: str, path: str, body: bytes = b"", **environ: Any) -> tuple[str, Any, bool]:
    """Call the router as cheroot would; return the status, the document and whether it asks to close."""
    status, closed = [], []
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(body)),
        STREAM_KEY: lambda: io.BytesIO(body),
        CLOSE_KEY: lambda: closed.append(True),
        **environ,
    }
    answer = b"".join(router(environ, lambda text, _headers: status.append(text)))
    return status[0], json.loads(answer or b"null"), bool(closed)


def open_router(*templates: str, body_max: int = 1 << 20) -> tuple[Router, list[Request]]:
    router, calls = Router(), []

    def handle(request: Request) -> dict[str, Any]:
        size = len(request.body.read_all())
        calls.append(request)
        return {"params": dict(request.params), "size": size}

    for template in templates:
        router.add("POST", template, handle, peer_required=False, body_max=body_max)
    return router, calls


@given(st.text(max_size=60))
def test_any_path_is_served_or_not_found(path: str) -> None:
    router, calls = open_router("/a/{x}/b/{y}")
    status, document, _ = call(router, "POST", path)
    if status.startswith("200"):
        assert path.strip("/") == f"a/{calls[0].params['x']}/b/{calls[0].params['y']}"
        assert all(
            set(value) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~-")
            for value in document["params"].values()
        )
    else:
        assert status.startswith("404")
        assert document["error"]["code"] == "not_found"


@given(st.from_regex(r"[A-Za-z0-9._~-]{1,128}", fullmatch=True))
def test_parameters_come_through(value: str) -> None:
    router, _ = open_router("/a/{x}")
    assert call(router, "POST", f"/a/{value}")[1]["params"] == {"x": value}


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=10), st.text(max_size=20))
def test_no_header_makes_a_peer_or_a_crash(headers: dict[str, str], length: str) -> None:
    router = Router()
    router.add("GET", "/closed", lambda _: {"in": True})
    environ = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    status, document, _ = call(router, "GET", "/closed", **environ, CONTENT_LENGTH=length)
    assert status[:3] in {"401", "400"}
    assert "in" not in document


@given(st.binary(max_size=300), st.integers(1, 40))
def test_chunked_body_whole_and_in_any_pieces(data: bytes, size: int) -> None:
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    body = Body(io.BytesIO(wire), None)
    body.limit = 300
    assert body.read_all() == data
    assert body.ended
    for end in range(len(wire) - 1):
        cut = Body(io.BytesIO(wire[:end]), None)
        cut.limit = 300
        with pytest.raises(CutBodyError):
            cut.read_all()
        assert cut.broken


@given(st.binary(max_size=100))
def test_garbage_is_no_chunked_body(data: bytes) -> None:
    body = Body(io.BytesIO(data), None)
    body.limit = 50
    try:
        got = body.read_all()
    except InvalidInputError:
        return
    assert data.endswith(b"0\r\n\r\n") or b"0\r\n\r\n" in data
    assert len(got) <= 50


def test_chunked_body_is_bounded_by_its_route() -> None:
    router, calls = open_router("/a", body_max=10)
    wire = b"6\r\nabcdef\r\n" * 3 + b"0\r\n\r\n"
    status, document, closed = call(
        router, "POST", "/a", wire, HTTP_TRANSFER_ENCODING="chunked", CONTENT_LENGTH=None
    )
    assert status.startswith("413")
    assert document["error"]["code"] == "too_large"
    assert not closed, "the rest was read away, so the connection can be kept"
    assert calls == []


@given(st.integers(0, 200), st.integers(0, 200))
def test_body_that_is_shorter_than_its_length_is_cut(length: int, there: int) -> None:
    body = Body(io.BytesIO(bytes(there)), length)
    if there >= length:
        assert len(body.read_all()) == length
    else:
        with pytest.raises(CutBodyError):
            body.read_all()
        assert body.broken


def test_broken_body_closes_the_connection() -> None:
    router, calls = open_router("/a")
    status, document, closed = call(router, "POST", "/a", b"abc", CONTENT_LENGTH="10")
    assert status.startswith("400")
    assert document["error"]["code"] == "cut_body"
    assert document["error"]["retry"] == "later"
    assert closed
    assert calls == []


def test_large_unread_body_of_a_stranger_closes_the_connection() -> None:
    router, _ = open_router("/a")
    _, _, closed = call(router, "POST", "/elsewhere", bytes(2 << 20))
    assert closed
    _, _, closed = call(router, "POST", "/elsewhere", bytes(1000))
    assert not closed


def test_streamed_answer_needs_its_length() -> None:
    router = Router()
    router.add("GET", "/x", lambda _: Response(body=iter([b"x"])), peer_required=False)
    with pytest.raises(ValueError, match="length"):
        call(router, "GET", "/x")


def test_too_large_is_an_invalid_input_with_a_status_of_its_own() -> None:
    assert issubclass(TooLargeError, InvalidInputError)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1e999}',
        b'{"a": [-1e400]}',
        b'{"a": NaN}',
        rb'{"a": "\ud800"}',
        rb'{"\uDFFFb": 1}',
        rb'{"a": ["\udc00\ud800"]}',
    ],
)
def test_what_no_database_can_give_back_is_refused_at_the_door(body: bytes) -> None:
    """An inventory with one of these hid the list of all nodes: SQLite took it, and nothing could read it again."""
    with pytest.raises(InvalidInputError, match="not JSON"):
        parse_object(body)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude00", "b": "\\ud800", "c": 1e300}') == {
        "a": "\U0001f600",
        "b": "\\ud800",
        "c": 1e300,
    }
