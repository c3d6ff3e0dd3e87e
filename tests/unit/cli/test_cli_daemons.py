"""`service init`, `service run`, `node enrol`, `node run`: what they check and hand on before anything runs."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import secondsite.node.daemon
import secondsite.node.enrol
import secondsite.service.daemon
from secondsite.model.ids import NodeId, SiteId
from secondsite.node.config import NodeConfig
from secondsite.node.enrol import EnrolRequest
from secondsite.service.daemon import Options
from support.cli_world import Said, call

NOWHERE = httpx.MockTransport(lambda _request: httpx.Response(500))


def run(*arguments: str) -> Said:
    return call(NOWHERE, *arguments)


def test_service_init_makes_a_vault_and_prints_the_token_alone(tmp_path: Path) -> None:
    said = run("service", "init", "--data", str(tmp_path / "s"), "--vault", "head-office")
    assert said.code == 0
    assert said.out.count("\n") == 1
    assert str(tmp_path / "s" / "ca" / "ca.pem") in said.err
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    again = run("service", "init", "--data", str(tmp_path / "s"), "--vault", "head-office", "--json")
    assert (again.code, again.out) == (3, "")


def test_service_init_as_json_has_the_token_and_the_authority(tmp_path: Path) -> None:
    made = run("service", "init", "--data", str(tmp_path / "s"), "--vault", "head-office", "--json").json
    assert made["vault"] == "head-office"
    assert made["token"]
    assert Path(made["ca"]).is_file()
    assert made["ca_fingerprint"]


def test_service_run_hands_its_options_on_and_tells_where_it_listens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[Path, Options]] = []

    def fake(data: Path, options: Options, *, ready: Callable[[dict[str, Any]], None]) -> None:
        seen.append((data, options))
        ready({"url": "https://127.0.0.1:1/api/v1"})

    monkeypatch.setattr(secondsite.service.daemon, "run", fake)
    words = ["service", "run", "--data", str(tmp_path), "--listen", "[::1]:1", "--node-listen", "h:2"]
    words += ["--name", "dr.example", "--standby", "--database", "postgresql://db/dr"]
    assert run(*words).err == "the service listens at https://127.0.0.1:1/api/v1\n"
    assert run(*words, "--json").json == {"url": "https://127.0.0.1:1/api/v1"}
    expected = Options(("::1", 1), ("h", 2), "postgresql://db/dr", ("dr.example",), standby=True)
    assert seen == [(tmp_path, expected)] * 2


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1"])
def test_an_address_that_does_not_parse_is_exit_code_2(address: str, tmp_path: Path) -> None:
    said = run("service", "run", "--data", str(tmp_path), "--listen", address)
    assert (said.code, "expected HOST:PORT" in said.err) == (2, True)


def test_node_enrol_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[EnrolRequest] = []

    class Enrolled:
        node = "n-1"
        name = "host-1"

    def fake(_state: Path, request: EnrolRequest) -> Enrolled:
        seen.append(request)
        return Enrolled()

    monkeypatch.setattr(secondsite.node.enrol, "enrol", fake)
    words = ["node", "enrol", "--service", "dr.example:8445", "--key", "k", "--name", "host-1"]
    words += ["--storage", "/srv/dr", "--state", str(tmp_path)]
    assert f"secondsite node run --state {tmp_path}" in run(*words, "--advertise", "host-1.example").err
    assert run(*words, "--listen", "192.0.2.1:8084", "--json").json == {
        "node": "n-1",
        "name": "host-1",
        "state": str(tmp_path),
    }
    assert [request.advertise_host for request in seen] == ["host-1.example", ""]
    assert {(request.service_host, request.service_port) for request in seen} == {("dr.example", 8445)}
    assert run(*words, "--service", "dr-2.example:8446", "--advertise", "h.example").code == 0
    assert seen[-1].services == ("dr-2.example:8446",)
    wildcard = run(*words)
    assert (wildcard.code, "--advertise" in wildcard.err) == (2, True)


def test_a_node_is_told_where_a_standby_service_would_answer(tmp_path: Path) -> None:
    NodeConfig(
        node=NodeId("n-1"),
        name="host-1",
        site=SiteId("s-1"),
        service_host="dr-1.example",
        service_port=8445,
        service_name="service",
        fabric="qemu:///system",
        storage=str(tmp_path),
        listen_host="127.0.0.1",
        listen_port=1,
    ).save(tmp_path)
    words = ["node", "services", "--state", str(tmp_path)]
    assert run(*words).out == "dr-1.example:8445\n"
    said = run(*words, "dr-1.example:8445", "[2001:db8::2]:8445", "--json")
    assert said.json == {"node": "host-1", "services": ["dr-1.example:8445", "[2001:db8::2]:8445"]}
    assert NodeConfig.load(tmp_path).service_addresses == [("dr-1.example", 8445), ("2001:db8::2", 8445)]
    assert run(*words, "nonsense").code == 2


def test_node_run_without_enrolment_says_what_to_do(tmp_path: Path) -> None:
    said = run("node", "run", "--state", str(tmp_path))
    assert said.code != 0
    assert "node enrol" in said.err
