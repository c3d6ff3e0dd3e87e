"""`secondsite node start-held`: it asks for its sentence, and says what became of the order."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secondsite.cli import app
from secondsite.model.ids import Epoch, ItemId
from secondsite.model.policy import Policy
from secondsite.node.records import Held, ItemRecord, ItemStore, Role
from secondsite.node.source.held import START_ORDER, sentence_for

ITEM = ItemId("0b6c7e9a-0000-4000-8000-00000000aaaa")


@pytest.fixture
def items(tmp_path: Path) -> ItemStore:
    items = ItemStore(tmp_path / "items")
    items.put(
        ItemRecord(
            ITEM,
            "web",
            Epoch(3),
            Role.SOURCE,
            bytes(32).hex(),
            Policy(),
            (),
            held=Held("nobody answers"),
        )
    )
    return items


def start(tmp_path: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["node", "start-held", "web", "--state", str(tmp_path), "--json", *more])
    return done.exit_code, done.output


def test_it_asks_for_a_sentence_that_names_the_machine(tmp_path: Path, items: ItemStore) -> None:
    code, said = start(tmp_path, "--confirm", "yes")
    assert code == 2
    assert sentence_for(items.get(ITEM)) in " ".join(json.loads(said)["error"]["hint"].split())
    assert not (items.folder(ITEM) / START_ORDER).exists()


def test_an_order_that_no_daemon_follows_stands_and_is_told(tmp_path: Path, items: ItemStore) -> None:
    code, said = start(tmp_path, "--confirm", sentence_for(items.get(ITEM)), "--wait", "0.01")
    assert code not in {0, 2}
    assert "nobody answers" in said
    assert json.loads((items.folder(ITEM) / START_ORDER).read_text()) == {"epoch": 3}


def test_it_waits_until_the_daemon_runs_the_machine(tmp_path: Path, items: ItemStore) -> None:
    daemon = threading.Timer(0.3, lambda: items.change(ITEM, held=None))
    daemon.start()
    code, said = start(tmp_path, "--confirm", sentence_for(items.get(ITEM)))
    daemon.join()
    assert (code, json.loads(said)) == (0, {"item": ITEM, "name": "web", "held": False})


def test_what_is_not_held_needs_no_order(tmp_path: Path, items: ItemStore) -> None:
    items.change(ITEM, held=None)
    assert start(tmp_path)[0] not in {0, 2}
    assert CliRunner().invoke(app, ["node", "start-held", "db", "--state", str(tmp_path)]).exit_code != 0
