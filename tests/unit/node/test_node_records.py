"""Records: what was written is read back, an epoch never goes down, and a damaged record harms only its own item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondsite import durable
from secondsite.errors import ConflictError, CorruptError, NotFoundError, StaleEpochError
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId, Sequence
from secondsite.model.policy import Policy
from secondsite.node.records import Acked, ItemRecord, ItemStore, Peer, Replica, Role, require_role
from secondsite.node.source.held import find_record
from support.power import AFTERMATHS, PowerCutError, power, unsynced

ITEM = ItemId("0b6c7e9a-0000-4000-8000-00000000aaaa")
OTHER = ItemId("0b6c7e9a-0000-4000-8000-00000000bbbb")
FULL = ItemRecord(
    item=ITEM,
    name="web ü",
    epoch=Epoch(3),
    role=Role.SOURCE,
    digest_key=bytes(range(32)).hex(),
    policy=Policy(copy_frequency_s=5, bandwidth_limit=1 << 20),
    disks=(DiskKey("vda"), DiskKey("vdb")),
    vm="a machine",
    peer=Peer(NodeId("node-b"), "127.0.0.1", 7100),
    acked=Acked(Sequence(7), Digest("ab" * 32), "2026-01-01T00:00:00Z", "ss-1"),
    test=Replica("vm", "web-test", Sequence(5), Digest("cd" * 32), socket="v1"),
    failover=Replica("vm", "web", Sequence(7), Digest("ab" * 32), checkpoint="ss-2", started=True),
    images={DiskKey("vda"): "/disks/a.qcow2"},
    counters={"cycles": 4},
)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    ItemStore(tmp_path).put(FULL)
    assert ItemStore(tmp_path).get(ITEM) == FULL
    assert ItemStore(tmp_path).all() == [FULL]


def test_an_epoch_never_goes_down(tmp_path: Path) -> None:
    store = ItemStore(tmp_path)
    store.put(FULL)
    with pytest.raises(StaleEpochError):
        store.change(ITEM, epoch=Epoch(2), role=Role.TARGET)
    with pytest.raises(StaleEpochError):
        store.put(replace(FULL, epoch=Epoch(1)))
    assert store.get(ITEM) == ItemStore(tmp_path).get(ITEM) == FULL
    assert store.change(ITEM, epoch=Epoch(4)).epoch == 4


def test_counters_are_kept_with_the_next_change(tmp_path: Path) -> None:
    store = ItemStore(tmp_path)
    store.put(FULL)
    store.count(ITEM, "cycles")
    store.count(ITEM, "resyncs", 2)
    store.count(OTHER, "cycles")
    assert store.get(ITEM).counters == {"cycles": 5, "resyncs": 2}
    store.change(ITEM, role=Role.PREPARING)
    assert ItemStore(tmp_path).get(ITEM).counters == {"cycles": 5, "resyncs": 2}


def test_an_item_that_was_forgotten_is_unknown(tmp_path: Path) -> None:
    store = ItemStore(tmp_path)
    store.put(FULL)
    store.remove(ITEM)
    store.remove(ITEM)
    assert store.find(ITEM) is None
    assert not store.folder(ITEM).exists()
    with pytest.raises(NotFoundError):
        ItemStore(tmp_path).get(ITEM)


def test_a_node_starts_after_a_kill_while_it_forgot_an_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never did again, for any item: what was left of the folder was taken for an item with a bad id."""

    def killed(path: Path) -> None:
        raise PowerCutError

    store = ItemStore(tmp_path)
    store.put(FULL)
    store.put(replace(FULL, item=OTHER))
    monkeypatch.setattr(durable.shutil, "rmtree", killed)
    with pytest.raises(PowerCutError):
        store.remove(ITEM)
    assert [record.item for record in ItemStore(tmp_path).all()] == [OTHER]
    assert find_record(tmp_path, FULL.name)[1].item == OTHER, "the operator's way, too"


def test_a_role_is_demanded_by_name() -> None:
    require_role(FULL, Role.TARGET, Role.SOURCE)
    with pytest.raises(ConflictError, match="source for web ü, not target or active"):
        require_role(FULL, Role.TARGET, Role.ACTIVE)


@given(cut=st.integers(0, 2000), byte=st.binary(min_size=1, max_size=1))
def test_a_damaged_record_is_refused_or_says_the_same(cut: int, byte: bytes) -> None:
    text = bytearray(FULL.to_json().encode())
    for damaged in (
        bytes(text[: cut % len(text)]),
        bytes(text[: cut % len(text)]) + byte + bytes(text[cut % len(text) + 1 :]),
    ):
        try:
            found = ItemRecord.from_json(damaged.decode("utf-8", "replace"))
        except CorruptError:
            continue
        assert found == FULL


def test_a_damaged_record_keeps_no_other_item_from_going_on(tmp_path: Path) -> None:
    store = ItemStore(tmp_path)
    store.put(FULL)
    store.put(replace(FULL, item=OTHER))
    (store.folder(OTHER) / "record.json").write_text('{"torn": ')
    store = ItemStore(tmp_path)
    assert store.all() == [FULL]
    # Nothing may be done with it as if it were new: its role and epoch are the fence.
    for act in (
        lambda: store.find(OTHER),
        lambda: store.get(OTHER),
        lambda: store.put(replace(FULL, item=OTHER)),
        lambda: store.change(OTHER, role=Role.TARGET),
    ):
        with pytest.raises(CorruptError):
            act()
    store.count(OTHER, "cycles")
    assert (store.folder(OTHER) / "record.json").read_text() == '{"torn": '
    assert not store.forget_damaged(ITEM)
    assert store.forget_damaged(OTHER)
    assert store.find(OTHER) is None
    assert not store.folder(OTHER).exists()


@pytest.mark.fault
def test_a_power_cut_leaves_the_old_record_or_the_new_one(tmp_path: Path) -> None:
    newer = replace(FULL, epoch=Epoch(4), role=Role.STANDBY)
    step = 0
    seen = set()
    with unsynced():
        while step < 20:
            root = tmp_path / f"{step}" / "items"
            store = ItemStore(root)
            store.put(FULL)
            ended = False
            with power(root, step) as supply:
                try:
                    store.put(newer)
                    ended = True
                except PowerCutError:
                    pass
            for number, kind in enumerate(AFTERMATHS):
                after = ItemStore(supply.aftermath(kind, tmp_path / f"{step}-{number}")).get(ITEM)
                assert after in ((newer,) if ended else (FULL, newer)), (step, kind)
                seen.add(after.epoch)
            supply.close()
            if ended:
                break
            step += 1
    assert seen == {3, 4}
