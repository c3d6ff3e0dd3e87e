"""The choice of compression, against links and compressors with known figures."""

from __future__ import annotations

from secondsite.ship.compression import CHEAP, PROBE_EVERY, Compression, Sent

MIB = 1 << 20


class World:
    """A link and data of known speed; tells the choice what it would measure."""

    def __init__(self, link: float, ratios: dict[int, float], speeds: dict[int, float] | None = None) -> None:
        self.link = link
        self.ratios = ratios
        self.speeds = speeds or {1: 400 * MIB, 3: 350 * MIB}
        self.choice = Compression()

    def send(self, count: int, length: int = 64 * MIB) -> list[int]:
        """Send parts and return the levels chosen."""
        levels = []
        for _ in range(count):
            level = self.choice.choose(length)
            levels.append(level)
            wire = int(length * self.ratios[level]) if level else length
            own = length / self.speeds[level] if level else 0.0
            self.choice.observe(Sent(length, wire, level, own, wire / self.link))
        return levels


def test_thin_link_gets_the_higher_level() -> None:
    assert World(2 * MIB, {1: 0.40, 3: 0.36}).send(20)[10:] == [3] * 10


def test_middling_link_gets_level_1() -> None:
    assert World(150 * MIB, {1: 0.40, 3: 0.38}).send(20)[10:] == [1] * 10


def test_link_that_outruns_the_compressor_gets_bytes_as_they_are() -> None:
    assert World(1000 * MIB, {1: 0.5, 3: 0.48}).send(20)[10:] == [0] * 10


def test_a_cycles_small_part_is_compressed_also_for_a_fast_link() -> None:
    world = World(1000 * MIB, {1: 0.5, 3: 0.48})
    assert world.send(10)[5:] == [0] * 5
    assert world.send(10, CHEAP) == [1] * 10
    assert world.send(10)[5:] == [0] * 5


def test_a_small_part_that_does_not_shrink_goes_as_it_is() -> None:
    assert World(1000 * MIB, {1: 1.0, 3: 1.0}).send(20, CHEAP)[15:] == [0] * 5


def test_data_that_does_not_shrink_goes_as_it_is_whatever_the_link() -> None:
    assert World(2 * MIB, {1: 1.0, 3: 1.0}, {1: 1400 * MIB, 3: 1300 * MIB}).send(20)[15:] == [0] * 5


def test_change_of_the_data_is_found_by_a_probe() -> None:
    world = World(10 * MIB, {1: 1.0, 3: 1.0})
    world.send(20)
    world.ratios = {1: 0.3, 3: 0.28}
    levels = world.send(4 * PROBE_EVERY)
    assert levels[0] == 0
    assert 0 not in levels[2 * PROBE_EVERY :]


def test_change_of_the_link_is_followed() -> None:
    world = World(1000 * MIB, {1: 0.4, 3: 0.38})
    assert world.send(30)[-1] == 0
    world.link = 1 * MIB
    assert world.send(40)[-1] == 3


def test_switched_off_is_off() -> None:
    choice = Compression(enabled=False)
    assert [choice.choose(MIB) for _ in range(3)] == [0, 0, 0]


def test_small_parts_are_compressed_and_teach_nothing() -> None:
    choice = Compression()
    assert choice.choose(100) == 1
    choice.observe(Sent(100, 90, 1, 0.5, 0.5))
    assert choice.link is None


def test_part_size_fits_twenty_seconds() -> None:
    world = World(1.0, {1: 0.5, 3: 0.5})
    assert world.choice.suggested_part_size() == 8 * MIB, "before anything was measured"
    for link, expected in ((10_000, MIB), (MIB, 20 * MIB), (500 * MIB, 64 * MIB)):
        world = World(link, {1: 0.5, 3: 0.5})
        world.send(3)
        assert world.choice.suggested_part_size() == expected
