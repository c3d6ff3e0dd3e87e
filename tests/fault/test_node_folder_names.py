"""The names of a node's folders are as durable as what it keeps in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.model.ids import Epoch, ItemId
from secondsite.model.policy import Policy
from secondsite.node.config import Folders
from secondsite.node.records import ItemRecord, ItemStore, Role
from support.crash_disk import Tree
from support.crash_recorder import Recorder
from support.crash_states import Cuts
from support.power import unsynced

pytestmark = pytest.mark.fault

ITEM = ItemId("0b6c7e9a-0000-4000-8000-00000000aaaa")
RECORD = ItemRecord(
    item=ITEM,
    name="web",
    epoch=Epoch(1),
    role=Role.SOURCE,
    digest_key=bytes(32).hex(),
    policy=Policy(),
    disks=(),
)


def synced(recorder: Recorder) -> Tree:
    cuts = Cuts(recorder.start, recorder.log, list(recorder.live.folders))
    cuts.forward(len(recorder.log))
    return cuts.nothing()


def test_a_record_is_there_after_a_cut_also_if_its_folder_was_made_before(tmp_path: Path) -> None:
    """A source makes the folder of the digest tables first, and then keeps the record beside it."""
    recorder = Recorder(tmp_path)
    with unsynced(), recorder.recording():
        items = ItemStore(tmp_path / "items")
        (items.folder(ITEM) / "digests").mkdir(parents=True)
        items.put(RECORD)
    assert f"items/{ITEM}/record.json" in synced(recorder)


def test_the_folders_of_a_node_are_there_after_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "symlink_to", lambda *_: None)  # not recorded, and made again at each start
    recorder = Recorder(tmp_path)
    with unsynced(), recorder.recording():
        Folders(tmp_path / "state", tmp_path / "storage").make()
    assert {"state/items", "state/identity", "storage/secondsite/journals"} <= set(synced(recorder))
