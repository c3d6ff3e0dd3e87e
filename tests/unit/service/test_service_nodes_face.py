"""The nodes' face without sockets: enrolment, long polls, results, reports."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest

from secondsite.errors import ConflictError, InvalidInputError, NotFoundError, UnauthenticatedError
from secondsite.model.ids import CommandId, NodeId
from secondsite.service import nodes_face
from secondsite.service.nodes_face import NodesFace
from secondsite.service.store import commands, events, nodes, points
from secondsite.service.usecases import enrolment, protect, reports, setup, tokens
from secondsite.ship.http import Body, Request
from secondsite.ship.identity import PeerCertificate, ca_fingerprint, make_key_and_csr, node_id_of
from support.service_world import World, absent


@pytest.fixture
def face(world: World) -> NodesFace:
    return NodesFace(world.ctx, {"vault": "test"})


def call(face: NodesFace, endpoint: str, node: str | None, **body: Any) -> Any:
    """Make a call as the node whose certificate the TLS session would have verified."""
    data = json.dumps(body).encode()
    request = Request(
        method="POST",
        path=f"/node/v1/{endpoint}",
        params={},
        query={},
        headers={},
        body=Body(io.BytesIO(data), len(data)),
        certificate=None if node is None else PeerCertificate(NodeId(node), 1, face._ctx.clock()),
        remote="",
    )
    return getattr(face, f"_{endpoint}")(request)


def put(world: World, command: str, node: str) -> None:
    with world.store.transaction() as tx:
        commands.put(
            tx,
            {
                "id": command,
                "node_id": world.node(node),
                "kind": "k",
                "epoch": 1,
                "args": {},
                "created": world.clock(),
            },
        )


def ids(answer: Any) -> list[str]:
    return [command["id"] for command in answer["commands"]]


# -- enrolment ---------------------------------------------------------------------------------------------


def test_a_key_yields_a_certificate_in_the_name_of_the_new_node(world: World, face: NodesFace) -> None:
    key = tokens.create_registration_key(world.ctx, "ams").key
    _private, csr = make_key_and_csr("x")
    answer = call(
        face,
        "enrol",
        None,
        key=key,
        csr=csr.decode(),
        name="new",
        roles=["target"],
        data_address="[::1]:8084",
        storage="/srv",
    )
    assert node_id_of(answer["certificate"].encode()) == answer["node"]
    assert ca_fingerprint(answer["ca"].encode()) == key.split(".")[2]
    with world.store.reading() as tx:
        node = nodes.get(tx, "new")
    assert (node.id, node.roles, node.address, node.storage) == (
        answer["node"],
        ["target"],
        ("::1", 8084),
        "/srv",
    )


def enrol(world: World, key: str, name: str, csr: bytes, **more: Any) -> enrolment.Enrolled:
    fields: dict[str, Any] = {"roles": ["source"], "data_address": "h:1", "storage": None, **more}
    return enrolment.enrol(world.ctx, key=key, csr=csr, name=name, **fields)


def test_a_key_is_valid_for_five_days(world: World) -> None:
    key = tokens.create_registration_key(world.ctx, "ams").key
    _private, csr = make_key_and_csr("x")
    world.clock.turn(days=5, seconds=-1)
    enrol(world, key, "early", csr)
    world.clock.turn(seconds=1)
    with pytest.raises(UnauthenticatedError, match="expired"):
        enrol(world, key, "late", csr)


@pytest.mark.parametrize(
    "spoil", [lambda k: k.replace(".", ".0", 1), lambda k: "x" + k, lambda k: "nonsense"]
)
def test_a_spoilt_key_is_refused(world: World, spoil: Any) -> None:
    key = tokens.create_registration_key(world.ctx, "ams").key
    _private, csr = make_key_and_csr("x")
    with pytest.raises(UnauthenticatedError):
        enrol(world, spoil(key), "new", csr)


def test_a_refused_enrolment_does_not_use_the_key_up(world: World) -> None:
    key = tokens.create_registration_key(world.ctx, "ams", uses_max=1).key
    _private, csr = make_key_and_csr("x")
    with pytest.raises(ConflictError):
        enrol(world, key, "host-ams", csr)
    enrol(world, key, "new", csr)
    with pytest.raises(UnauthenticatedError, match="used up"):
        enrol(world, key, "newer", csr)


def test_a_name_in_use_can_be_asked_for_again_only_by_its_own_key_pair(world: World) -> None:
    key = tokens.create_registration_key(world.ctx, "ams").key
    _private, csr = make_key_and_csr("x")
    first = enrol(world, key, "new", csr)
    assert enrol(world, key, "new", csr).node == first.node
    _other, stranger = make_key_and_csr("x")
    with pytest.raises(ConflictError, match="already"):
        enrol(world, key, "new", stranger)


@pytest.mark.parametrize(
    "spoilt",
    [{"roles": []}, {"roles": ["king"]}, {"data_address": "nohost"}, {"data_address": "h:0"}, {"csr": b"no"}],
    ids=str,
)
def test_a_malformed_enrolment_is_refused(world: World, spoilt: dict[str, Any]) -> None:
    key = tokens.create_registration_key(world.ctx, "ams").key
    _private, csr = make_key_and_csr("x")
    fields = {"csr": csr, **spoilt}
    with pytest.raises(InvalidInputError):
        enrol(world, key, "new", **fields)


def test_a_removed_node_is_refused_and_its_name_is_free(world: World, face: NodesFace) -> None:
    node = world.enrol("third", "ams")
    call(face, "report", node)
    enrolment.remove_node(world.ctx, "third")
    with pytest.raises(UnauthenticatedError):
        call(face, "report", node)
    world.enrol("third", "ams")
    with pytest.raises(UnauthenticatedError):
        call(face, "report", "0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f")


def test_a_node_with_a_part_in_an_item_is_not_removed(world: World) -> None:
    world.protected()
    with pytest.raises(ConflictError, match="web-1"):
        enrolment.remove_node(world.ctx, "host-rtm")


def test_a_node_renews_its_certificate_with_the_one_it_has(world: World, face: NodesFace) -> None:
    node = world.node("host-ams")
    _private, csr = make_key_and_csr("x")
    answer = call(face, "renew", node, csr=csr.decode())
    assert node_id_of(answer["certificate"].encode()) == node
    with pytest.raises(UnauthenticatedError):
        call(face, "renew", None, csr=csr.decode())
    key = tokens.create_registration_key(world.ctx, "ams").key
    assert enrol(world, key, "host-ams", csr).node == node  # the new key pair is the node's now


# -- polls -------------------------------------------------------------------------------------------------


def test_a_poll_returns_at_once_what_waits_and_again_what_was_lost(world: World, face: NodesFace) -> None:
    node = world.node("host-ams")
    put(world, "c1", "host-ams")
    put(world, "c2", "host-ams")
    put(world, "other", "host-rtm")
    assert ids(call(face, "poll", node, wait_s=20, running=[])) == ["c1", "c2"]
    assert ids(call(face, "poll", node, wait_s=20, running=["c1"])) == ["c2"]
    assert ids(call(face, "poll", node, wait_s=0, running=["c1", "c2"])) == []


def test_a_new_command_wakes_a_waiting_poll(
    world: World, face: NodesFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_face, "RECHECK_S", 60.0)  # only the bell can end the wait in time
    monkeypatch.setattr(nodes_face, "POLL_MAX_S", 60.0)
    node = world.node("host-ams")
    answers: list[Any] = []
    polling = threading.Thread(target=lambda: answers.append(call(face, "poll", node, wait_s=60, running=[])))
    polling.start()
    put(world, "c", "host-ams")
    polling.join(30)
    assert [ids(answer) for answer in answers] == [["c"]]


def test_a_command_of_another_process_is_found_within_a_second(world: World, face: NodesFace) -> None:
    from secondsite.service.store.database import Store

    other = Store(world.store.url.render_as_string())
    node = world.node("host-ams")
    answers: list[Any] = []
    polling = threading.Thread(target=lambda: answers.append(call(face, "poll", node, wait_s=20, running=[])))
    polling.start()
    with other.transaction() as tx:
        commands.put(
            tx, {"id": "c", "node_id": node, "kind": "k", "epoch": 1, "args": {}, "created": world.clock()}
        )
    other.close()
    polling.join(15)
    assert [ids(answer) for answer in answers] == [["c"]]


def test_a_closing_service_sends_polls_home(world: World, face: NodesFace) -> None:
    node = world.node("host-ams")
    polling = threading.Thread(target=lambda: call(face, "poll", node, wait_s=20, running=[]))
    polling.start()
    face.close()
    polling.join(10)
    assert not polling.is_alive()


@pytest.mark.parametrize(
    "body", [{"wait_s": "x"}, {"wait_s": True}, {"running": "x"}, {"running": [1]}], ids=str
)
def test_a_malformed_poll_is_refused(world: World, face: NodesFace, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        call(face, "poll", world.node("host-ams"), **body)


# -- progress and results ----------------------------------------------------------------------------------


def test_a_result_is_taken_from_the_commands_node_alone_and_once(world: World, face: NodesFace) -> None:
    put(world, "c", "host-ams")
    mine, other = world.node("host-ams"), world.node("host-rtm")
    with pytest.raises(NotFoundError):
        call(face, "result", other, command="c", result={})
    with pytest.raises(InvalidInputError):
        call(face, "result", mine, command="c", result={}, error={})
    with pytest.raises(InvalidInputError):
        call(face, "result", mine, command="c")
    assert call(face, "result", mine, command="c", result={"n": 1}) == {}
    assert call(face, "result", mine, command="c", result={"n": 2}) == {}
    with world.store.reading() as tx:
        found = commands.find(tx, CommandId("c"))
    assert found is not None
    assert found.result == {"n": 1}


def test_progress_is_kept_and_answers_whether_to_stop(world: World, face: NodesFace) -> None:
    put(world, "c", "host-ams")
    node = world.node("host-ams")
    body = {"command": "c", "fraction": 0.5, "text": "copying", "bytes": 1, "secret": "x", "rate": None}
    assert call(face, "progress", node, **body) == {"cancelled": False}
    with world.store.transaction() as tx:
        found = commands.find(tx, CommandId("c"))
        assert found is not None
        assert found.progress == {"fraction": 0.5, "text": "copying", "bytes": 1}
        commands.give_up(tx, found, {"code": "timeout", "message": "too late"}, world.clock())
    assert call(face, "progress", node, command="c") == {"cancelled": True}
    with pytest.raises(NotFoundError):
        call(face, "progress", world.node("host-rtm"), command="c")


# -- reports -----------------------------------------------------------------------------------------------


def sequences(world: World) -> list[int]:
    with world.store.reading() as tx:
        return [point.sequence for point in points.listed(tx, world.item().id)]


def point(world: World, sequence: int, digest: str = "") -> dict[str, Any]:
    digest = digest or f"{sequence:064x}"
    return {"sequence": sequence, "time": world.clock.now.isoformat(), "epoch": 1, "digest": digest}


def test_points_are_taken_from_the_journals_node_and_forgotten_when_it_says_so(world: World) -> None:
    item = world.protected()
    source, target = item.source_node_id, item.target_node_id

    def report(node: NodeId, numbers: list[int], *, complete: bool) -> None:
        told = {"points": [point(world, number) for number in numbers], "complete": complete}
        reports.take_report(world.ctx, node, {"points": {item.id: told}})

    report(target, [2, 3], complete=False)
    assert sequences(world) == [3, 2, 1]
    report(source, [9], complete=True)
    assert sequences(world) == [3, 2, 1]
    report(target, [2, 3], complete=True)
    assert sequences(world) == [3, 2]
    assert world.item().last_sequence == 3


def test_a_point_that_took_others_in_is_known_by_its_new_digest(world: World) -> None:
    """The old one was kept, and a failover to that point was refused: "not the one that the source sealed"."""
    item = world.protected()
    world.point(item)
    world.point(item)
    merged = point(world, 2, "f" * 64) | {"kind": "merged", "changed": 8192}
    told = {"points": [point(world, 1), merged, point(world, 3)], "complete": True}
    reports.take_report(world.ctx, item.target_node_id, {"points": {item.id: told}})
    with world.store.reading() as tx:
        found = points.get(tx, item.id, 2)
    assert (found.digest, found.kind, found.changed) == ("f" * 64, "merged", 8192)
    assert sequences(world) == [3, 2, 1]


def test_points_that_went_are_forgotten_by_their_numbers_alone(world: World) -> None:
    item = world.protected()
    target = item.target_node_id
    told = {"points": [point(world, number) for number in (1, 2, 3)], "complete": True}
    reports.take_report(world.ctx, target, {"points": {item.id: told}})
    told = {"points": [point(world, 3, "f" * 64), point(world, 4)], "gone": [1, 2, 3, 9], "complete": False}
    reports.take_report(world.ctx, target, {"points": {item.id: told}})
    assert sequences(world) == [4, 3]  # 3 is there under another digest: it took the others in
    with pytest.raises(InvalidInputError):
        reports.take_report(world.ctx, target, {"points": {item.id: {"points": [], "gone": ["x"]}}})


def test_a_report_that_tells_nothing_new_writes_no_points(world: World) -> None:
    item = world.protected()
    told = {"points": {item.id: {"points": [point(world, 1)], "complete": True}}}
    seen = world.store.bell.count
    reports.take_report(world.ctx, item.target_node_id, told)
    assert world.store.bell.count == seen


def test_a_new_point_wakes_who_waits_for_it_and_no_poll(world: World) -> None:
    item = world.protected()
    told = {"points": {item.id: {"points": [point(world, 900)], "complete": False}}}
    changes, polls = world.store.bell.count, world.store.calls.count
    reports.take_report(world.ctx, item.target_node_id, told)
    assert (world.store.bell.count, world.store.calls.count) == (changes + 1, polls)


def test_reports_are_kept_by_the_side_of_the_node(world: World) -> None:
    item = world.protected()
    for node, role in ((item.source_node_id, "source"), (item.target_node_id, "target")):
        entry = {"item": item.id, "role": role, "phase": "delta"}
        reports.take_report(world.ctx, node, {"items": [entry, {"item": "somebody-else's"}]})
    found = world.item()
    assert found.source_report is not None
    assert found.target_report is not None
    assert (found.source_report["role"], found.target_report["role"]) == ("source", "target")


def test_a_nodes_event_is_kept_once(world: World) -> None:
    node = world.node("host-ams")
    told = {
        "events": [{"id": "e1", "code": "resync", "message": "m", "severity": "warning", "item": "unknown"}]
    }
    reports.take_report(world.ctx, node, told)
    reports.take_report(world.ctx, node, told)
    with world.store.reading() as tx:
        found = [event for event in events.listed(tx, node_id=node) if event.code == "resync"]
    assert [(event.severity, event.item_id) for event in found] == [("warning", None)]


@pytest.mark.parametrize(
    "report",
    [{"items": 1}, {"points": [1]}, {"events": "x"}],
    ids=str,
)
def test_a_malformed_report_is_refused_whole(world: World, report: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        reports.take_report(world.ctx, world.node("host-ams"), {"inventory": {"vms": []}, **report})
    assert [machine.name for machine in protect.protectable(world.ctx)] == ["web-1"]


def test_a_changed_policy_is_pushed_to_both_sides_of_its_items(world: World) -> None:
    item = world.protected()
    for kind in ("source.policy", "target.policy"):
        world.answers[kind] = absent
    setup.change_policy(world.ctx, "fast", {"copy_frequency_s": 30})
    with world.store.reading() as tx:
        pushed = {
            (command.kind, command.node_id, command.args["policy"]["copy_frequency_s"])
            for command in commands.open_of_item(tx, item.id)
        }
    assert pushed == {
        ("source.policy", item.source_node_id, 30),
        ("target.policy", item.target_node_id, 30),
    }
