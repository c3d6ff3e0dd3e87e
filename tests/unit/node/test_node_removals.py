"""What a node remembers of the nodes that were removed from the vault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secondsite.errors import InvalidInputError
from secondsite.node.removals import Removals


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "removed.json"


def test_nobody_is_removed_until_the_service_says_so(path: Path) -> None:
    removals = Removals(path)
    assert removals.mark == ""
    assert "a" not in removals


def test_what_was_told_holds_at_once_and_after_a_restart(path: Path) -> None:
    removals = Removals(path)
    removals.take({"nodes": ["a", "b"], "mark": "m1"})
    for found in (removals, Removals(path)):
        assert "a" in found
        assert "c" not in found
        assert found.mark == "m1"


def test_a_list_that_lacks_somebody_brings_nobody_back(path: Path) -> None:
    # A service that was restored from an older copy. The mark is that of its list, else each poll would end at once.
    removals = Removals(path)
    removals.take({"nodes": ["a"], "mark": "m1"})
    removals.take({"nodes": ["b"], "mark": "m2"})
    for found in (removals, Removals(path)):
        assert "a" in found
        assert "b" in found
        assert found.mark == "m2"


def test_a_list_that_cannot_be_written_holds_and_is_asked_for_again(path: Path) -> None:
    removals = Removals(path)
    path.mkdir()
    with pytest.raises(OSError):
        removals.take({"nodes": ["a"], "mark": "m1"})
    assert "a" in removals
    assert removals.mark == ""


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"nodes": "a", "mark": ""}', '{"nodes": [1], "mark": ""}']
)
def test_a_damaged_file_keeps_nobody_from_starting(path: Path, text: str) -> None:
    path.write_text(text)
    assert Removals(path).mark == ""


@pytest.mark.parametrize(
    "document", [None, [], {}, {"nodes": ["a"]}, {"nodes": [1], "mark": "m"}, {"nodes": "a", "mark": "m"}]
)
def test_what_is_no_list_is_refused_and_changes_nothing(path: Path, document: object) -> None:
    removals = Removals(path)
    removals.take({"nodes": ["a"], "mark": "m1"})
    before = json.loads(path.read_text())
    with pytest.raises(InvalidInputError):
        removals.take(document)
    assert json.loads(path.read_text()) == before
    assert removals.mark == "m1"
