"""Two real nodes that replicate with Kerberos alone: no certificate listener answers while they do."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from secondsite.errors import ForbiddenError, RemoteError, UnavailableError
from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.records import check_records
from secondsite.model.ids import Epoch, NodeId, SiteId
from secondsite.node import kerberos as node_kerberos
from secondsite.node.config import KerberosConfig, NodeConfig
from secondsite.node.kerberos import trust_for
from secondsite.node.records import Peer
from secondsite.ship.client import Endpoint, JsonClient
from secondsite.ship.identity import Credentials
from secondsite.ship.kerberos import KerberosTrust
from secondsite.ship.protocol import ITEM_PATH, item_path
from support.guests import running_guest
from support.hypervisors import HypervisorPair
from support.node_pair import POLICY, NodePair, PairNode, node_pair, wait_until
from support.private_kdc import REALM, PrivateKdc

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SIZE = 64 << 20
STRANGER = f"HTTP/stranger.test@{REALM}"
NAMES = {side: f"HTTP/{side}.test@{REALM}" for side in ("primary", "recovery")}


@pytest.fixture(scope="module")
def kdc() -> Iterator[PrivateKdc]:
    kdc = PrivateKdc()
    yield kdc
    kdc.close()


@pytest.fixture
def nodes(short_path: Path, hypervisor_pair: HypervisorPair, kdc: PrivateKdc) -> Iterator[NodePair]:
    settings = {
        side: KerberosConfig(
            name, str(kdc.keytab(name)), listen_host="127.0.0.1", peers={STRANGER: "node-stranger"}
        )
        for side, name in NAMES.items()
    }
    with kdc.using(), node_pair(short_path, hypervisor_pair, settings) as pair:
        for node in (pair.primary, pair.recovery):
            node.daemon.listener.stop()  # so that nothing can go another way
        yield pair
    for domain in hypervisor_pair.recovery.connect().listAllDomains():
        if domain.name() == "krb-a":
            domain.destroy()
            domain.undefine()


def points_of(node: PairNode, item: str) -> list[int]:
    journals = node.daemon.journals
    return [point.sequence for point in journals.get(item).points()] if journals.exists(item) else []


def test_a_guest_is_replicated_goes_there_and_is_replicated_back(
    nodes: NodePair, hypervisor_pair: HypervisorPair, guest_files: GuestFiles, kdc: PrivateKdc
) -> None:
    with running_guest(hypervisor_pair.primary, guest_files, "krb-a", count=1, size=SIZE) as guest:
        item = nodes.protect("krb-a", {"vda": SIZE})
        wait_until(lambda: len(points_of(nodes.recovery, item)) >= 2, what="two points")

        # Another node of the vault: its ticket opens the door, and not this item.
        tickets = nodes.recovery.daemon.tickets
        assert tickets is not None
        ca = nodes.recovery.state / "identity" / "ca.pem"
        cache = nodes.recovery.state / "tickets-of-a-stranger"
        trust = KerberosTrust(ca, STRANGER, kdc.keytab(STRANGER), NAMES["recovery"], cache)
        place = Endpoint(*tickets.listener.address, nodes.recovery.daemon.config.node)
        with JsonClient(place, trust) as client, pytest.raises(RemoteError) as caught:
            client.get(item_path(ITEM_PATH, item))
        assert caught.value.code == ForbiddenError.code

        prepared = nodes.primary.call("source.prepare", item, 1, {"shutdown_timeout_s": 60}, timeout_s=120)
        found = check_records(guest.disks)
        assert found.ok, found.problems
        failover = {key: prepared[key] for key in ("sequence", "digest")}
        nodes.recovery.call(
            "target.failover", item, 1, {**failover, "new_epoch": 2, "name": "krb-a", "networks": {}}
        )
        nodes.primary.call("source.demote", item, 2, {"new_epoch": 2})
        nodes.recovery.call("target.commit", item, 2, timeout_s=120)
        policy = asdict(POLICY)
        nodes.primary.call("target.adopt", item, 2, {**nodes.recovery.as_source, "policy": policy})
        nodes.recovery.call(
            "source.start", item, 2, {"resume": True, "target": nodes.primary.target, "policy": policy}
        )
        last = int(prepared["sequence"])
        wait_until(lambda: points_of(nodes.primary, item)[-1] > last, what="a point in the new direction")
        record = nodes.primary.daemon.items.get(item)
        assert record.epoch == Epoch(2)
        assert record.peer is not None
        assert record.peer.principal == NAMES["recovery"]
        nodes.recovery.call("source.stop", item, 2, timeout_s=120)
        nodes.primary.call("target.remove", item, 2, {"delete_replica": False}, timeout_s=120)


def test_a_node_without_its_keytab_starts_says_why_and_listens_once_it_is_there(
    short_path: Path,
    hypervisor_pair: HypervisorPair,
    kdc: PrivateKdc,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_kerberos, "RETRY_S", 0.05)
    keytab = short_path / "late.keytab"
    settings = KerberosConfig(NAMES["recovery"], str(keytab), listen_host="127.0.0.1")
    with kdc.using(), node_pair(short_path, hypervisor_pair, {"recovery": settings}) as pair:
        tickets = pair.recovery.daemon.tickets
        assert tickets is not None
        assert tickets.error is not None
        assert str(keytab) in tickets.error.message
        assert tickets.address == "", "the service must send nobody to it"
        assert [event["code"] for event in pair.recovery.daemon.events.take()] == ["no-tickets"]
        keytab.write_bytes(kdc.keytab(NAMES["recovery"]).read_bytes())
        wait_until(lambda: tickets.error is None, 20, "the listener")
        assert tickets.address == f"127.0.0.1:{tickets.listener.address[1]}"


def test_a_port_that_is_taken_is_tried_again(
    short_path: Path, hypervisor_pair: HypervisorPair, kdc: PrivateKdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_kerberos, "RETRY_S", 0.05)
    name = NAMES["recovery"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = KerberosConfig(name, str(kdc.keytab(name)), listen_host="127.0.0.1", listen_port=port)
        context = node_pair(short_path, hypervisor_pair, {"recovery": settings})
        with kdc.using(), context as pair:
            tickets = pair.recovery.daemon.tickets
            assert tickets is not None
            assert tickets.error is not None
            taken.close()
            wait_until(lambda: tickets.address, 20, "the listener")
            with socket.create_connection(("127.0.0.1", port), timeout=10):
                pass


def test_settings_survive_a_restart(short_path: Path, hypervisor_pair: HypervisorPair) -> None:
    settings = KerberosConfig(NAMES["primary"], "/keytab", peers={NAMES["recovery"]: "node-recovery"})
    with node_pair(short_path, hypervisor_pair, {"primary": settings}) as pair:
        state = pair.primary.state
    assert NodeConfig.load(state).kerberos == settings
    replace(NodeConfig.load(state), kerberos=None).save(state)
    assert NodeConfig.load(state).kerberos is None


def test_a_target_that_takes_tickets_needs_settings_here(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    peer = Peer(NodeId("node-b"), "127.0.0.1", 1, NAMES["recovery"])
    with pytest.raises(Exception, match="no Kerberos settings") as caught:
        trust_for(peer, credentials, None, tmp_path)
    assert not isinstance(caught.value, UnavailableError)
    assert trust_for(Peer(NodeId("node-b")), credentials, None, tmp_path) is credentials


# -- the command --------------------------------------------------------------------------------------------


def command(state: Path, kdc: PrivateKdc, *words: str) -> tuple[int, str, str]:
    argv = [sys.executable, "-m", "secondsite", "node", "kerberos", "--state", str(state), "--json", *words]
    done = kdc.run(*argv)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def enrolled(tmp_path: Path) -> Path:
    NodeConfig(
        NodeId("node-a"), "a", SiteId("s"), "127.0.0.1", 1, "service", "test:///default", "/", "127.0.0.1", 1
    ).save(tmp_path)
    (tmp_path / "identity").mkdir()
    return tmp_path


def test_the_command_writes_settings_that_work_and_shows_them(enrolled: Path, kdc: PrivateKdc) -> None:
    name, keytab = NAMES["primary"], str(kdc.keytab(NAMES["primary"]))
    words = ["--principal", name, "--keytab", keytab, "--listen", "127.0.0.1:8083"]
    code, shown, _ = command(enrolled, kdc, *words, "--peer", f"{NAMES['recovery']}=node-b")
    assert code == 0
    config = NodeConfig.load(enrolled).kerberos
    assert config is not None
    assert (config.accepts, config.listen_port) == (name, 8083)
    assert config.peers == {NAMES["recovery"]: "node-b"}
    assert json.loads(shown) == asdict(config) == json.loads(command(enrolled, kdc)[1])
    assert command(enrolled, kdc, "--off")[0] == 0
    assert NodeConfig.load(enrolled).kerberos is None


def test_the_command_refuses_a_keytab_of_somebody_else(enrolled: Path, kdc: PrivateKdc) -> None:
    keytab = str(kdc.keytab(NAMES["recovery"]))
    code, _, said = command(enrolled, kdc, "--principal", NAMES["primary"], "--keytab", keytab)
    assert code == 5
    assert NAMES["primary"] in said
    assert NodeConfig.load(enrolled).kerberos is None
