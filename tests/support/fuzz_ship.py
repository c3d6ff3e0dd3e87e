"""What is fuzzed of the replication listener: calls as they come out of a connection, before and after authentication.

An input is a list of calls. Each: a line "who METHOD path", header lines, an empty line, the body; calls are parted by _NEXT. `who` is source,
stranger or nobody. `@D` stands for the digest of the body, `@L` for its length, `@P` for the digest of the last point, `@ITEM` for the
item, so that changed contents still get past the digests; `X-Zstd` and `X-Chunked` have the body packed after it was changed. Behind the calls stand the real routes, the node's real receiver and a real
journal. What lies below (TLS, the head of a request) is in tests/property/test_hostile_listener.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import zstandard
from blake3 import blake3

from secondsite.errors import SecondSiteError
from secondsite.journal import open_raw_base
from secondsite.model.ids import NodeId
from secondsite.model.policy import Policy
from secondsite.node.records import ItemRecord, ItemStore, Peer, Role
from secondsite.node.target.journals import Journals
from secondsite.node.target.receiver import JournalReceiver
from secondsite.ship.admission import SESSION_KEY, checking_peers
from secondsite.ship.identity import PeerCertificate
from secondsite.ship.listener import make_router
from secondsite.ship.peers import Session
from secondsite.ship.routing import CLOSE_KEY, STREAM_KEY
from support.fuzz_loop import MIB, Finding, Target
from support.journals import ITEM, KEY, VDA, Model, log_bytes
from support.path_watch import paths_within

SOURCE, STRANGER = NodeId("node-source"), NodeId("node-stranger")
NOW: Final = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)
_NEXT: Final = b"\n==\n"
_ANSWER_MAX: Final = 160 * MIB
_CALLS_MAX: Final = 6


class MemoryStream:
    """The bytes of a connection behind the head of a request."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._data))
        view[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def readline(self, limit: int) -> bytes:
        line = bytes(self._data[:limit])
        end = line.find(b"\n")
        line = line[: end + 1] if end >= 0 else line
        self._data = self._data[len(line) :]
        return line


@dataclass
class World:
    """A target with one item that has points; each input gets a fresh copy of it."""

    folder: Path
    model: Model
    manifest: bytes
    last: str
    journals: Journals | None = None
    app: Any = None
    sealed: list[str] = field(default_factory=list)

    def reset(self) -> None:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.folder / "sound", work)
        items = ItemStore(work / "items")
        self.journals = Journals(lambda item: items.folder(item) / "journal", open_raw_base)
        router = make_router(JournalReceiver(items, self.journals))
        self.app = checking_peers(router, is_revoked=None, clock=lambda: NOW)
        self.sealed.clear()

    def check(self) -> None:
        """What was sealed before still reads the same, and what was acknowledged since is the last point."""
        assert self.journals is not None
        journal = self.journals.get(ITEM)
        if self.sealed:
            last = journal.status().last
            if last is None or last.digest != self.sealed[-1]:
                raise Finding("a point was acknowledged and is not there")
        with journal.view(journal.points()[0].sequence, purpose="fuzz") as view:
            if view.disks[VDA].read(0, self.model.sizes[VDA]) != self.model.contents[1][VDA]:
                raise Finding("a sealed point reads back wrong")

    def close(self) -> None:
        if self.journals is not None:
            self.journals.close()


@contextmanager
def ship_target(folder: Path) -> Iterator[Target]:
    """See the module's docstring."""
    items = folder / "sound" / "items"
    model = Model({VDA: 64 << 10})
    items.mkdir(parents=True)
    (items / ITEM).mkdir()
    with model.create(items / ITEM / "journal") as journal:
        model.replicate_initially(journal, {VDA: [(0, b"A" * 16384)]})
        model.seal(journal, {})
    ItemStore(items).put(
        ItemRecord(ITEM, "web", model.epoch, Role.TARGET, KEY.hex(), Policy(), (VDA,), peer=Peer(SOURCE))
    )
    assert model.previous is not None
    log = log_bytes(64 << 10, [(4096, b"b" * 4096)], unique=7)
    manifest = model.manifest({VDA: [("hrl", log)]}).to_bytes()
    world = World(folder, model, manifest, model.previous)
    yield Target(
        "ship",
        ("ship", "node/target/receiver.py", "journal", "hrl", "model"),
        list(_seeds(log, manifest, model.manifest({}).to_bytes())),
        lambda data: _play(world, data),
        _WORDS,
        memory_max=256 * MIB,
        json_share=0.5,
    )
    world.close()


_WORDS: Final = [
    b"source ", b"nobody ", b"stranger ", b"GET ", b"PUT ", b"POST ", b"DELETE ", b"@D", b"@L", b"@P", b"@ITEM", b"/ship/v1/items/@ITEM",
    b"/missing", b"/parts/@D?kind=zeros", b"/initial", b"/points", b"/digests", b"..", b"%2e%2e%2f", b"\0", b"Secondsite-Epoch: 1\n",
    b"Secondsite-Length: @L\n", b"Secondsite-Length: 7\n", b"Content-Encoding: zstd\n", b"X-Zstd: 1\n", b"X-Chunked: 1\n", b"Transfer-Encoding: chunked\n",
    b"Content-Length: 5\n", _NEXT, b"0\r\n\r\n", b"ffffffff\r\n",
    b'"sequence":2', b'"sequence":10000000000000000', b'"vda"', b'"../x"', b'"/x"', b'"\\u0000"', b'"size":65536', b'"size":4611686018427387904',
]  # fmt: skip


def _seeds(log: bytes, manifest: bytes, empty: bytes) -> Iterator[bytes]:
    item, epoch = b"/ship/v1/items/@ITEM", b"Secondsite-Epoch: 1\n"
    part = b"source PUT " + item + b"/parts/@D?kind=hrl\n" + epoch + b"Secondsite-Length: @L\n"
    missing = b'{"epoch":1,"parts":[{"digest":"' + b"0" * 64 + b'","kind":"hrl"}]}'
    digests = b'{"epoch":1,"disk":"vda","ranges":[[0,4],[8,8]]}'
    initial = b'{"epoch":1,"disk":"vda","digests":["' + b"1" * 64 + b'"]}'
    point = b"source POST " + item + b"/points\n" + epoch + b"\n" + manifest
    yield b"source GET " + item + b"\n\n"
    yield b"source GET /ship/v1/session\n\n" + _NEXT + b"nobody GET /ship/v1/session\n\n"
    yield b"stranger GET " + item + b"\n\n"
    yield part + b"\n" + log
    yield part + b"\n" + log + _NEXT + point
    yield part + b"Content-Encoding: zstd\nX-Zstd: 1\nX-Chunked: 1\n\n" + log
    yield part.replace(b"hrl", b"zeros") + b"\n" + b"SSZEROS\n\x01" + bytes(15)
    yield b"source POST " + item + b"/missing\n\n" + missing
    yield b"source POST " + item + b"/digests\n\n" + digests
    yield b"source POST " + item + b"/initial\nX-Chunked: 1\n\n" + initial
    yield point.replace(manifest, empty)
    # What was found once, or is the plainest lie: never again unseen.
    yield point.replace(manifest, empty.replace(b'"sequence":2', b'"sequence":10000000000000000'))
    yield part.replace(b"@L", b"7") + b"\n" + log
    yield b"source POST " + item + b"/missing\n\n" + missing.replace(b"0" * 64, b"/x")
    yield part + b"\n" + log + _NEXT + point.replace(b'"sequence":2', b'"sequence":9')


def _play(world: World, data: bytes) -> None:
    world.reset()
    with paths_within(world.folder) as outside:
        changed = False
        for text in data.split(_NEXT)[:_CALLS_MAX]:
            status, answer = _call(world, text)
            if status.startswith("200") and b"POST" in text[:20]:
                changed = True
                _note_seal(world, answer)
        if changed:
            world.check()
        world.close()
    if outside:
        raise Finding(f"outside of the node's folder: {outside[:3]}")


def _note_seal(world: World, answer: bytes) -> None:
    with suppress(ValueError):
        document = json.loads(answer)
        if "digest" in document:
            world.sealed.append(document["digest"])


def _call(world: World, text: bytes) -> tuple[str, bytes]:
    environ = _environ(world, text)
    length = environ.pop("fuzz.length")
    heads: list[str] = []
    answer = bytearray()
    with suppress(SecondSiteError):  # once an answer has begun, an error can only cut the connection
        for piece in world.app(environ, lambda status, _headers: heads.append(status)):
            answer += piece
            if len(answer) > _ANSWER_MAX:
                raise Finding("an answer without an end")
    if len(heads) != 1:
        raise Finding(f"{len(heads)} answers to one call")
    if not heads[0].startswith("200"):
        error = json.loads(bytes(answer))["error"]
        if error["code"] == "internal" or not error["message"] or not isinstance(error["hint"], str):
            raise Finding(f"no clear error: {error}")
    elif environ["REQUEST_METHOD"] == "PUT" and environ["HTTP_SECONDSITE_LENGTH"] != str(length):
        raise Finding(f"a part of {length} bytes was taken as one of {environ['HTTP_SECONDSITE_LENGTH']}")
    return heads[0], bytes(answer)


def _environ(world: World, text: bytes) -> dict[str, Any]:
    head, _, body = text.partition(b"\n\n")
    lines = head.split(b"\n")
    who, _, rest = lines[0].decode("latin-1").partition(" ")
    method, _, target = rest.partition(" ")
    digest = blake3(body).hexdigest()
    filled = {"@D": digest, "@L": str(len(body)), "@P": world.last, "@ITEM": ITEM}

    def fill(value: str) -> str:
        for mark, meaning in filled.items():
            value = value.replace(mark, meaning)
        return value

    headers = {}
    for line in lines[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().upper().replace("-", "_")] = fill(value.strip())
    if headers.pop("X_ZSTD", None):
        body = zstandard.ZstdCompressor().compress(body)
    if headers.pop("X_CHUNKED", None):
        middle = len(body) // 2
        pieces = [piece for piece in (body[:middle], body[middle:]) if piece]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        headers["TRANSFER_ENCODING"] = "chunked"
    elif "TRANSFER_ENCODING" not in headers:
        headers.setdefault("CONTENT_LENGTH", str(len(body)))
    path, _, query = fill(target).partition("?")
    peers = {"source": SOURCE, "stranger": STRANGER}
    session = Session(b"")
    if who in peers:
        session.peer = PeerCertificate(peers[who], 1, NOW.replace(year=2100))
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "fuzz.length": len(text.partition(b"\n\n")[2]),
        SESSION_KEY: session,
        STREAM_KEY: lambda: MemoryStream(body),
        CLOSE_KEY: lambda: None,
    }
    for name, value in headers.items():
        environ[name if name in {"CONTENT_LENGTH", "CONTENT_TYPE"} else f"HTTP_{name}"] = value
    return environ
