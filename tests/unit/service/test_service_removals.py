"""How nodes hear that one of them was removed: by their polls, at once, and once."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest

from secondsite.model.ids import NodeId
from secondsite.service import nodes_face
from secondsite.service.nodes_face import NodesFace
from secondsite.service.usecases import enrolment
from secondsite.ship.http import Body, Request
from secondsite.ship.identity import PeerCertificate
from support.service_world import World


@pytest.fixture
def face(world: World) -> NodesFace:
    return NodesFace(world.ctx, {"vault": "test"})


def poll(world: World, face: NodesFace, **body: Any) -> Any:
    data = json.dumps({"running": [], **body}).encode()
    certificate = PeerCertificate(world.node("host-rtm"), 1, world.clock())
    body_of = Body(io.BytesIO(data), len(data))
    return face._poll(Request("POST", "/node/v1/poll", {}, {}, {}, body_of, certificate, ""))


def test_the_first_poll_brings_the_list_and_the_next_one_waits(world: World, face: NodesFace) -> None:
    gone = world.node("host-ams")
    enrolment.remove_node(world.ctx, "host-ams")
    told = poll(world, face, wait_s=20, removed="")["removed"]
    assert told["nodes"] == [gone]
    assert "removed" not in poll(world, face, wait_s=0, removed=told["mark"])


def test_a_removal_wakes_a_waiting_poll(
    world: World, face: NodesFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_face, "RECHECK_S", 60.0)  # only the bell can end the wait in time
    monkeypatch.setattr(nodes_face, "POLL_MAX_S", 60.0)
    mark = poll(world, face, wait_s=0, removed="")["removed"]["mark"]
    gone: NodeId = world.node("host-ams")
    answers: list[Any] = []
    polling = threading.Thread(target=lambda: answers.append(poll(world, face, wait_s=60, removed=mark)))
    polling.start()
    enrolment.remove_node(world.ctx, "host-ams")
    polling.join(30)
    assert [answer["removed"]["nodes"] for answer in answers] == [[gone]]


def test_a_node_that_does_not_ask_is_not_told(world: World, face: NodesFace) -> None:
    enrolment.remove_node(world.ctx, "host-ams")
    assert poll(world, face, wait_s=0) == {"commands": []}
