"""What the monitor finds: silent nodes, points that are too old; each told once when it begins and once when it ends."""

from __future__ import annotations

from secondsite.service.monitor import Monitor, look
from secondsite.service.store import events, nodes
from secondsite.service.usecases import reports
from support.service_world import World


def told(world: World) -> list[str]:
    with world.store.reading() as tx:
        return [event.code for event in events.listed(tx, after=0)]


def test_a_node_that_is_not_heard_is_silent_until_it_calls(world: World) -> None:
    host = world.node("host-ams")
    world.clock.turn(seconds=44)
    reports.sign_of_life(world.ctx, world.node("host-rtm"))
    look(world.ctx)
    assert "node-silent" not in told(world)
    world.clock.turn(seconds=2)
    look(world.ctx)
    look(world.ctx)
    assert told(world).count("node-silent") == 1
    with world.store.reading() as tx:
        assert (nodes.get(tx, host).silent, nodes.get(tx, "host-rtm").silent) == (True, False)
    reports.sign_of_life(world.ctx, host)
    reports.sign_of_life(world.ctx, host)
    assert told(world).count("node-back") == 1


def test_a_service_that_was_down_gives_nodes_time_to_call(world: World) -> None:
    world.clock.turn(hours=3)
    began = world.clock()
    world.clock.turn(seconds=10)
    look(world.ctx, began)
    assert "node-silent" not in told(world)
    world.clock.turn(seconds=40)
    look(world.ctx, began)
    assert told(world).count("node-silent") == 2


def test_an_old_newest_point_is_told_once_and_its_end_once(world: World) -> None:
    item = world.protected()
    world.clock.turn(seconds=61)
    look(world.ctx)
    look(world.ctx)
    assert told(world).count("rpo-exceeded") == 1
    assert world.item().rpo_alert
    world.point(item)
    look(world.ctx)
    look(world.ctx)
    assert (told(world).count("rpo-exceeded"), told(world).count("rpo-kept")) == (1, 1)


def test_the_monitor_survives_what_it_meets_and_ends_when_closed(world: World) -> None:
    looked: list[int] = []

    def broken() -> object:
        looked.append(1)
        world.store.bell.ring()
        raise RuntimeError("no clock")

    monitor = Monitor(world.ctx, every_s=0.01)
    monitor.start()
    object.__setattr__(world.ctx, "clock", broken)
    seen = world.store.bell.count
    while len(looked) < 2:
        assert world.store.bell.wait(seen, 20)
        seen = world.store.bell.count
    monitor.close()
    assert len(looked) >= 2
