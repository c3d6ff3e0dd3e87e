"""What every Receiver must do, seen from the sender's end of a real connection.

Run on the fake here. An adapter joins by one more entry in RECEIVERS: a function that yields a ReceiverUnderTest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from secondsite.errors import RemoteError
from secondsite.model.ids import Digest, DiskKey, Epoch
from secondsite.ship.fake import MemoryReceiver
from secondsite.ship.listener import Receiver
from secondsite.ship.protocol import CellRange, PartKind, PartRef
from secondsite.ship.sender import Outgoing
from support.ship_site import EPOCH, ITEM, SOURCE, STRANGER, ShipSite, manifest, ship_site


@dataclass
class ReceiverUnderTest:
    """A receiver that has ITEM of SOURCE at EPOCH with one disk "vda" of 1 MiB, and no point."""

    receiver: Receiver
    make_part: Callable[[int], bytes]
    """Bytes of a valid part, different for each number."""


@contextmanager
def memory(folder: Path) -> Iterator[ReceiverUnderTest]:
    receiver = MemoryReceiver()
    receiver.add(ITEM, SOURCE, EPOCH).cells[DiskKey("vda")] = bytes(8 * 256)
    yield ReceiverUnderTest(receiver, lambda number: b"part %d" % number)


RECEIVERS: dict[str, Callable[[Path], AbstractContextManager[ReceiverUnderTest]]] = {"memory": memory}


@dataclass
class Bench:
    """The receiver behind a listener."""

    site: ShipSite
    make_part: Callable[[int], bytes]

    def part(self, number: int) -> Outgoing:
        return self.site.part(self.make_part(number))


@pytest.fixture(params=sorted(RECEIVERS))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with RECEIVERS[request.param](tmp_path) as tested, ship_site(tmp_path, tested.receiver) as site:
        yield Bench(site, tested.make_part)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(RemoteError) as caught:
        call()
    return caught.value.code


def test_fresh_item_is_initial_and_has_nothing(bench: Bench) -> None:
    sender = bench.site.sender()
    status = sender.status()
    assert (status.epoch, status.state, status.last) == (EPOCH, "initial", None)
    digest = Digest("0" * 64)
    assert sender.missing([PartRef(digest, PartKind.LOG)]) == {digest}


def test_part_is_there_once_it_was_acknowledged(bench: Bench) -> None:
    part, other = bench.part(1), bench.part(2)
    sender = bench.site.sender()
    sender.send([part])
    refs = [PartRef(part.digest, part.kind), PartRef(other.digest, other.kind)]
    assert sender.missing(refs) == {other.digest}


def test_same_part_may_come_twice_also_at_the_same_time(bench: Bench) -> None:
    part = bench.part(1)
    errors: list[BaseException] = []

    def put() -> None:
        try:
            bench.site.sender()._put(part, lambda: False)
        except BaseException as error:
            errors.append(error)

    put()
    threads = [threading.Thread(target=put) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert bench.site.sender().missing([PartRef(part.digest, part.kind)]) == set()


def test_part_with_another_digest_is_corrupt_and_leaves_nothing(bench: Bench) -> None:
    part = bench.part(1)
    wrong = Outgoing(Digest(blake3(b"other").hexdigest()), part.kind, part.path, part.length)
    sender = bench.site.sender()
    assert code_of(lambda: sender.send([wrong])) == "corrupt"
    assert sender.missing([PartRef(wrong.digest, wrong.kind)]) == {wrong.digest}


def test_wrong_epochs_are_stale_everywhere(bench: Bench) -> None:
    part = bench.part(1)
    for epoch in (Epoch(EPOCH - 1), Epoch(EPOCH + 1)):
        sender = bench.site.sender(epoch=epoch)
        assert code_of(lambda s=sender: s.send([part])) == "stale_epoch"
        assert code_of(lambda s=sender: s._put(part, lambda: False)) == "stale_epoch"
        assert code_of(lambda s=sender: s.apply_initial(DiskKey("vda"), [part.digest])) == "stale_epoch"
        assert code_of(lambda s=sender, e=epoch: s.seal(manifest([part], epoch=e))) == "stale_epoch"
        assert code_of(lambda s=sender: list(s.digests(DiskKey("vda"), [CellRange(0, 1)]))) == "stale_epoch"


def test_another_node_may_do_nothing(bench: Bench) -> None:
    trust = bench.site.authority.issue_credentials(STRANGER, bench.site.folder / "stranger")
    sender = bench.site.sender(trust=trust)
    part = bench.part(1)
    for call in (
        sender.status,
        lambda: sender.send([part]),
        lambda: sender._put(part, lambda: False),
        lambda: sender.seal(manifest([part])),
        lambda: sender.apply_initial(DiskKey("vda"), [part.digest]),
        lambda: list(sender.digests(DiskKey("vda"), [CellRange(0, 1)])),
    ):
        assert code_of(call) in {"forbidden", "not_found"}


def test_sealing_is_idempotent_and_in_sequence(bench: Bench) -> None:
    sender = bench.site.sender()
    first, second = bench.part(1), bench.part(2)
    sender.send([first, second])
    one = sender.seal(manifest([first]))
    assert sender.seal(manifest([first])) == one
    assert code_of(lambda: sender.seal(manifest([second], 3, Digest("0" * 64)))) == "out_of_sequence"
    two = sender.seal(manifest([second], 2, one))
    last = sender.status().last
    assert last is not None
    assert (last.sequence, last.digest, last.epoch) == (2, two, EPOCH)
    assert sender.status().state == "ready"


def test_point_that_names_a_missing_part_is_refused(bench: Bench) -> None:
    sender = bench.site.sender()
    part = bench.part(1)
    with pytest.raises(RemoteError):
        sender.seal(manifest([part]))
    assert sender.status().last is None


def test_garbage_is_no_manifest(bench: Bench) -> None:
    assert code_of(lambda: bench.site.sender().seal(os.urandom(100))) in {"corrupt", "unsupported"}


def test_digests_are_eight_bytes_a_block(bench: Bench) -> None:
    sender = bench.site.sender()
    part = bench.part(1)
    sender.send([part])
    sender.seal(manifest([part]))
    ranges = [CellRange(0, 10), CellRange(255, 1)]
    assert len(b"".join(sender.digests(DiskKey("vda"), ranges))) == 88
