"""Sender and listener over real TLS: what arrives, what is refused, what is sent again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from secondsite.errors import CorruptError, RemoteError, UnauthenticatedError, UnavailableError
from secondsite.model.ids import Digest, DiskKey, Epoch
from secondsite.ship.http import is_code
from secondsite.ship.identity import CaOnly, CertificateAuthority
from secondsite.ship.protocol import PART_FILE_MAX, CellRange, PartKind, PartRef
from secondsite.ship.sender import Outgoing, StoppedError
from secondsite.ship.throttle import TokenBucket
from support.ship_site import EPOCH, ITEM, STRANGER, FakeClock, ShipSite, manifest, ship_site

MIB = 1 << 20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ShipSite]:
    with ship_site(tmp_path) as site:
        yield site


# -- the whole way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [True, False])
def test_parts_arrive_as_they_are_and_a_point_is_sealed(site: ShipSite, compression: bool) -> None:
    random = [site.part(os.urandom(MIB + 7)) for _ in range(3)]
    plain = [site.part(bytes([i]) * (2 * MIB)) for i in range(3)]
    zeros = site.part(b"zero extents", PartKind.ZEROS)
    parts = [*random, *plain, zeros]
    sender = site.sender(compression=compression)
    done: list[Outgoing] = []
    sender.send(parts, done.append)
    assert sorted(done, key=str) == sorted(parts, key=str)
    assert site.stored() == {part.digest: part.path.read_bytes() for part in parts}
    assert PartRef(zeros.digest, PartKind.ZEROS) in site.receiver.items[ITEM].parts

    assert sender.status().state == "initial"
    point = manifest(random)
    digest = sender.seal(point)
    assert sender.seal(point) == digest, "a lost answer is no harm"
    status = sender.status()
    assert (status.epoch, status.state) == (EPOCH, "ready")
    assert status.last is not None
    assert (status.last.sequence, status.last.digest) == (1, digest)
    assert site.receiver.items[ITEM].points == [point]


def test_compressed_parts_use_less_wire(site: ShipSite) -> None:
    sender = site.sender()
    sender.send([site.part(b"abcd" * MIB)])
    view = sender.progress.view()
    assert view.raw == view.total == 4 * MIB
    assert view.wire < MIB / 4
    assert site.receiver.received == 4 * MIB


def test_parts_from_an_iterator_are_sent_while_it_is_produced(site: ShipSite) -> None:
    first_arrived = threading.Event()

    def produce() -> Iterator[Outgoing]:
        yield site.part(b"first")
        assert first_arrived.wait(20), "the first part must go out before the second is made"
        yield site.part(b"second")

    site.sender().send(produce(), lambda _: first_arrived.set())
    assert sorted(site.stored().values()) == [b"first", b"second"]


def test_nothing_that_arrived_is_sent_again(site: ShipSite) -> None:
    parts = [site.part(os.urandom(1000 + i)) for i in range(6)]
    site.sender().send(parts[:4])
    before = site.receiver.received
    done: list[Outgoing] = []
    sender = site.sender()
    sender.send(parts, done.append)
    assert site.receiver.received - before == parts[4].length + parts[5].length
    assert len(done) == 6
    sender.send(iter(parts), done.append)
    assert site.receiver.received - before == parts[4].length + parts[5].length
    assert len(done) == 12


def test_no_parts_is_no_error(site: ShipSite) -> None:
    site.sender().send([])
    site.sender().send(iter(()))


def test_same_digest_from_many_connections_is_stored_once(site: ShipSite) -> None:
    part = site.part(os.urandom(300_000))
    errors: list[BaseException] = []

    def send() -> None:
        try:
            site.sender()._put(part, lambda: False)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert site.stored() == {part.digest: part.path.read_bytes()}


def test_initial_parts_are_applied(site: ShipSite) -> None:
    part = site.part(b"x" * 4096)
    sender = site.sender()
    sender.send([part])
    sender.apply_initial(DiskKey("vda"), [part.digest])
    assert site.receiver.items[ITEM].initial == [("vda", (part.digest,))]


def test_digests_come_in_order_and_in_calls_of_bounded_size(
    site: ShipSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = os.urandom(8 * 5000)
    site.receiver.items[ITEM].cells[DiskKey("vda")] = cells
    monkeypatch.setattr("secondsite.ship.sender._CELLS_PER_FETCH", 700)
    pieces = list(
        site.sender().digests(DiskKey("vda"), [CellRange(10, 2000), CellRange(0, 5), CellRange(4999, 1)])
    )
    assert b"".join(pieces) == cells[80 : 8 * 2010] + cells[:40] + cells[-8:]
    assert max(len(piece) for piece in pieces) <= 700 * 8


def test_digests_of_an_unknown_disk_are_refused(site: ShipSite) -> None:
    with pytest.raises(RemoteError) as caught:
        list(site.sender().digests(DiskKey("vdz"), [CellRange(0, 1)]))
    assert caught.value.code == "not_found"


def test_digests_that_break_off_are_no_answer(site: ShipSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[bytes]:
        yield bytes(80)
        raise OSError("the table cannot be read")

    monkeypatch.setattr(site.receiver, "digests", broken)
    with pytest.raises(UnavailableError):
        list(site.sender().digests(DiskKey("vda"), [CellRange(0, 20)]))


# -- who may -----------------------------------------------------------------------------------------------


def test_stranger_with_a_certificate_of_the_vault_gets_nothing(site: ShipSite) -> None:
    stranger = site.authority.issue_credentials(STRANGER, site.folder / "stranger")
    sender = site.sender(trust=stranger)
    part = site.part(b"data")
    for call in (sender.status, lambda: sender.send([part]), lambda: sender.seal(manifest([part]))):
        with pytest.raises(RemoteError) as caught:
            call()
        assert caught.value.code == "forbidden"
    assert site.receiver.received == 0


def test_nobody_and_foreign_nodes_get_nothing(site: ShipSite) -> None:
    foreign = CertificateAuthority.create("foreign").issue_credentials(STRANGER, site.folder / "foreign")
    (site.folder / "foreign" / "ca.pem").write_bytes(site.authority.pem)
    part = site.part(os.urandom(4 * MIB))
    for trust in (CaOnly(site.authority.pem), foreign):
        sender = site.sender(trust=trust)
        with pytest.raises(UnauthenticatedError):
            sender.status()
        with pytest.raises((UnauthenticatedError, UnavailableError)):
            sender._put(part, lambda: False)
    assert site.receiver.received == 0


def test_stale_epoch_is_refused_at_once_and_not_retried(site: ShipSite) -> None:
    waits: list[float] = []
    part = site.part(b"data")
    for epoch in (Epoch(2), Epoch(4)):
        sender = site.sender(epoch=epoch, sleep=waits.append)
        for call in (
            lambda s=sender: s.send([part]),
            lambda s=sender: s._put(part, lambda: False),
            lambda s=sender: s.seal(manifest([])),
            lambda s=sender: s.apply_initial(DiskKey("vda"), [part.digest]),
            lambda s=sender: list(s.digests(DiskKey("vda"), [CellRange(0, 1)])),
        ):
            with pytest.raises(RemoteError) as caught:
                call()
            assert is_code(caught.value, "stale_epoch")
            assert "superseded" in caught.value.hint
    assert waits == []
    assert site.stored() == {}


def test_refusal_of_a_large_part_is_told_not_a_broken_pipe(site: ShipSite) -> None:
    part = site.part(os.urandom(20 * MIB))
    with pytest.raises(RemoteError) as caught:
        site.sender(epoch=Epoch(1), compression=False)._put(part, lambda: False)
    assert caught.value.code == "stale_epoch"


def test_point_out_of_sequence_is_refused(site: ShipSite) -> None:
    sender = site.sender()
    sender.seal(manifest([]))
    with pytest.raises(RemoteError) as caught:
        sender.seal(manifest([], 3, Digest("0" * 64)))
    assert is_code(caught.value, "out_of_sequence")


# -- bad parts ---------------------------------------------------------------------------------------------


def put(site: ShipSite, part: Outgoing, body: bytes, **headers: str) -> None:
    """PUT a part with any body and headers."""
    sender = site.sender()
    fields = {"Secondsite-Epoch": str(EPOCH), "Secondsite-Length": str(part.length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    sender._client.request(
        "PUT", f"/ship/v1/items/{ITEM}/parts/{part.digest}?kind=hrl", body=body, headers=fields
    )


def test_part_with_another_digest_is_refused(site: ShipSite) -> None:
    part = site.part(b"right")
    with pytest.raises(RemoteError) as caught:
        put(site, part, b"wrong")
    assert caught.value.code == "corrupt"
    assert site.stored() == {}


@pytest.mark.parametrize("claimed", ["4", "6", "0", "-1", "", "1e3", str(PART_FILE_MAX + 1), "9" * 30])
def test_part_that_is_not_as_long_as_it_claims_is_refused(site: ShipSite, claimed: str) -> None:
    part = site.part(b"right")
    with pytest.raises(RemoteError) as caught:
        put(site, part, b"right", Secondsite_Length=claimed)
    assert caught.value.code in {"corrupt", "too_large", "invalid_input"}
    assert site.stored() == {}


def test_bomb_is_refused_before_it_is_large(site: ShipSite) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    part = site.part(b"x" * MIB)
    with pytest.raises(RemoteError) as caught:
        put(site, part, bomb, Content_Encoding="zstd")
    assert caught.value.code == "too_large"
    assert site.receiver.received <= 3 * MIB, "not expanded further than the claim and one piece"


def test_frame_with_a_huge_window_is_refused(site: ShipSite) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = frame.compress(os.urandom(MIB)) + frame.flush()
    with pytest.raises(RemoteError) as caught:
        put(site, site.part(b"x" * MIB), body, Content_Encoding="zstd")
    assert caught.value.code == "corrupt"


@pytest.mark.parametrize("how", ["garbage", "truncated", "trailing", "empty", "gzip"])
def test_malformed_compression_is_refused(site: ShipSite, how: str) -> None:
    data = os.urandom(50_000)
    part = site.part(data)
    whole = zstandard.ZstdCompressor().compress(data)
    body = {
        "garbage": b"no zstd at all",
        "truncated": whole[:-100],
        "trailing": whole + b"more",
        "empty": b"",
        "gzip": whole,
    }[how]
    with pytest.raises(RemoteError) as caught:
        put(site, part, body, Content_Encoding="gzip" if how == "gzip" else "zstd")
    assert caught.value.code in {"corrupt", "invalid_input"}
    assert site.stored() == {}


def test_file_that_shrank_in_the_spool_is_an_error_of_this_side(site: ShipSite) -> None:
    part = site.part(os.urandom(200_000))
    part.path.write_bytes(b"short")
    with pytest.raises(CorruptError, match="shorter"):
        site.sender(compression=False).send([part])
    part.path.unlink()
    with pytest.raises(CorruptError, match="opened"):
        site.sender().send([part])
    assert site.stored() == {}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/ship/v1/items/not-an-item", b""),
        ("PUT", f"/ship/v1/items/{ITEM}/parts/abc?kind=hrl", b"x"),
        ("PUT", f"/ship/v1/items/{ITEM}/parts/{'0' * 64}?kind=exe", b"x"),
        ("PUT", f"/ship/v1/items/{ITEM}/parts/{'0' * 64}", b"x"),
        ("POST", f"/ship/v1/items/{ITEM}/missing", b'{"epoch": 3, "parts": {}}'),
        ("POST", f"/ship/v1/items/{ITEM}/missing", b'{"epoch": "3", "parts": []}'),
        ("POST", f"/ship/v1/items/{ITEM}/missing", b'{"epoch": 3, "parts": [{"digest": "x"}]}'),
        ("POST", f"/ship/v1/items/{ITEM}/initial", b'{"epoch": 3, "disk": "../x", "digests": []}'),
        ("POST", f"/ship/v1/items/{ITEM}/digests", b'{"epoch": 3, "disk": "vda", "ranges": [[0, 99999999]]}'),
        ("POST", f"/ship/v1/items/{ITEM}/digests", b'{"epoch": 3, "disk": "vda", "ranges": [[-1, 1]]}'),
        ("POST", f"/ship/v1/items/{ITEM}/digests", b'{"epoch": 3, "disk": "vda", "ranges": [[0, 0]]}'),
        ("POST", f"/ship/v1/items/{ITEM}/points", b"no header"),
    ],
)
def test_malformed_calls_are_invalid_input(site: ShipSite, method: str, path: str, body: bytes) -> None:
    headers = {"Secondsite-Length": "1"} | ({"Secondsite-Epoch": "3"} if method == "PUT" else {})
    with pytest.raises(RemoteError) as caught:
        site.sender()._client.request(method, path, body=body, headers=headers)
    assert caught.value.code == "invalid_input"


# -- cancel and limits -------------------------------------------------------------------------------------


def test_cancel_ends_a_throttled_transfer(site: ShipSite) -> None:
    cancelled = threading.Event()
    clock = FakeClock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        cancelled.set()

    limiter = TokenBucket(10_000, monotonic=clock, sleep=sleep)
    sender = site.sender(limiter=limiter, cancelled=cancelled, compression=False)
    with pytest.raises(StoppedError):
        sender.send([site.part(os.urandom(MIB)) for _ in range(4)])
    assert site.stored() == {}
    assert sender.progress.view().raw == 0


def test_throttled_transfer_takes_the_time_it_should(site: ShipSite) -> None:
    clock = FakeClock()
    limiter = TokenBucket(100_000, burst_s=0.25, monotonic=clock, sleep=clock.sleep)
    sender = site.sender(limiter=limiter, connections=1, compression=False, monotonic=clock)
    start = clock.now
    sender.send([site.part(os.urandom(500_000)) for _ in range(2)])
    assert clock.now - start == pytest.approx(10.0, abs=0.3)
    assert sender.progress.view().wire == 1_000_000
    assert sender.suggested_part_size() == MIB, "20 s of 100 kB/s is about 2 MB, in whole MiB"


def test_error_of_the_producer_comes_out(site: ShipSite) -> None:
    def produce() -> Iterator[Outgoing]:
        yield site.part(b"one")
        raise CorruptError("the disk cannot be read")

    with pytest.raises(CorruptError, match="cannot be read"):
        site.sender().send(produce())
