"""`node kerberos` without a KDC: what it refuses, and that it then writes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from secondsite.model.ids import NodeId, SiteId
from secondsite.node.config import NodeConfig
from support.cli_world import Said, call

NOWHERE = httpx.MockTransport(lambda _request: httpx.Response(500))


def run(*arguments: str) -> Said:
    return call(NOWHERE, *arguments)


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    node = NodeConfig(
        NodeId("node-a"), "a", SiteId("s"), "127.0.0.1", 1, "service", "test:///default", "/", "127.0.0.1", 1
    )
    node.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--principal", "HTTP/a@B"], "--keytab"),
        (["--principal", "HTTP/a", "--keytab", "/nowhere"], "NAME@REALM"),
        (["--principal", "HTTP/a@B", "--keytab", "/nowhere"], "/nowhere cannot be read"),
        (["--principal", "HTTP/a@B", "--keytab", "/nowhere", "--listen", "0.0.0.0:8083"], "--advertise"),
        (["--principal", "HTTP/a@B", "--keytab", "/nowhere", "--listen", "127.0.0.1:0"], "8083"),
        (["--principal", "HTTP/a@B", "--keytab", "/nowhere", "--peer", "x=y"], "NAME@REALM"),
    ],
)
def test_what_could_not_work_is_refused(enrolled: Path, words: list[str], says: str) -> None:
    said = run("node", "kerberos", "--state", str(enrolled), *words)
    assert said.code == 2
    assert says in said.err
    assert NodeConfig.load(enrolled).kerberos is None


def test_without_gssapi_the_package_is_named(enrolled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    words = ["--principal", "HTTP/a@B", "--keytab", "/nowhere"]
    said = run("node", "kerberos", "--state", str(enrolled), *words)
    assert said.code == 2
    assert "python3-gssapi" in said.err


def test_a_node_without_settings_shows_none(enrolled: Path) -> None:
    assert run("node", "kerberos", "--state", str(enrolled), "--json").json == {}
