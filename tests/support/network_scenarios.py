"""What a bad line may do to a replication, each as one scenario that judges itself: `Figures` if all is as it must be, AssertionError if not.

Every scenario begins with a first point over a good line, has the guest write, and looks at: every point right after every failed try, the last one
equal to the machine, the tables true; how many bytes were read from the source and how many were sent, against what changed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secondsite.capture.fake import GRANULARITY
from secondsite.errors import SecondSiteError
from secondsite.model.units import BLOCK, KIB, MIB
from secondsite.ship.backoff import QuickRetries
from secondsite.ship.http import Limits
from support.network_world import Counts, NetworkWorld, network_world
from support.power import unsynced
from support.toxic_link import ToxicLink, Toxics

LOG_OVERHEAD: Final = 12 * KIB
"""A log's header and two metadata blocks."""
LAST_BLOCK: Final = BLOCK
"""Each cycle reads the last block of a disk that holds data, to see whether the disk was made smaller meanwhile."""
CALL_OVERHEAD: Final = 8 * KIB
"""Handshake, heads and answers of one connection."""


@dataclass(frozen=True)
class Figures:
    """What one scenario took. Bytes."""

    name: str
    seconds: float
    changed: int
    counts: Counts
    wire: int
    connections: int
    breaks: int
    note: str = ""

    def __str__(self) -> str:
        counts = self.counts
        return (
            f"{self.name}: {self.seconds:.1f} s; changed {self.changed}, read {counts.read}, parts received {counts.received}, of which committed "
            f"{counts.committed}, on the line {self.wire}; {counts.attempts} cycles ({counts.failed} failed), {self.connections} connections, "
            f"{self.breaks} breaks{'; ' + self.note if self.note else ''}"
        )


class Run:
    """One scenario under way: a world with a first point, and what was counted since."""

    def __init__(self, world: NetworkWorld, name: str) -> None:
        self.world = world
        self.line = world.line
        self._name = name
        self._rng = random.Random(name)
        world.write(0, self._rng.randbytes(2 * MIB))
        world.until_sealed(1)
        self._began = time.monotonic()
        self._up, self._connections, self._breaks = self.line.up, self.line.connections, self.line.breaks
        self.changed = 0
        self.granules: set[int] = set()

    def write(self, offset: int, length: int) -> None:
        """Have the guest write whole blocks that nobody can compress."""
        assert offset % BLOCK == length % BLOCK == 0
        self.world.write(offset, self._rng.randbytes(length))
        self.changed += length
        self.granules |= set(range(offset // GRANULARITY, -(-(offset + length) // GRANULARITY)))

    @property
    def due(self) -> int:
        """What one cycle has to read."""
        return len(self.granules) * GRANULARITY + LAST_BLOCK

    def figures(self, counts: Counts, note: str = "") -> Figures:
        """Check the end and return the figures."""
        self.world.check_latest()
        assert set(counts.codes) <= {"unavailable", "timeout"}, (
            f"other failures than the line's: {counts.codes}"
        )
        journals = self.world.root / "t" / "journals"
        # The target learns of a cut in a thread of its own.
        _wait_until(lambda: not list(journals.glob("*/incoming/*")), "a cut upload has left something")
        return Figures(
            self._name,
            time.monotonic() - self._began,
            self.changed,
            counts,
            self.line.up - self._up,
            self.line.connections - self._connections,
            self.line.breaks - self._breaks,
            note,
        )


@contextmanager
def network_run(folder: Path, name: str, *, seed: int = 0, **options: object) -> Iterator[Run]:
    with unsynced(), network_world(folder, Toxics(), seed=seed, **options) as world:  # type: ignore[arg-type]
        yield Run(world, name)


def latency(folder: Path) -> Figures:
    """200 ms each way."""
    with network_run(folder, "latency 200 ms") as run:
        run.line.toxics.latency_s = 0.2
        run.write(64 * KIB, 512 * KIB)
        counts = run.world.until_sealed(1)
        _exactly_once(run, counts)
        return run.figures(counts)


def loss(folder: Path, *, size: int = 4 * MIB) -> Figures:
    """1 % of the segments: stalls, and now and then a broken connection."""
    with network_run(folder, "loss 1 %", size=16 * MIB) as run:
        run.line.toxics.loss = 0.01
        run.write(0, size)
        counts = run.world.until_sealed(6)
        figures = run.figures(counts, f"{run.line.losses} segments lost")
        assert run.line.losses > size // 1448 // 300, "the line has lost next to nothing"
        _read_once_a_cycle(run, counts)
        # What a break costs is at most the part that it cut.
        assert counts.received <= (1 + figures.connections) * (run.changed + LOG_OVERHEAD)
        # Within a cycle nothing that arrived is sent again; a cycle that failed is.
        assert counts.committed <= counts.attempts * (run.changed + 4 * LOG_OVERHEAD), "a part was sent again"
        return figures


def thin(folder: Path, *, size: int = 32 * KIB) -> Figures:
    """64 kbit/s, with the product's own time-outs."""
    with network_run(
        folder, "64 kbit/s", limits=Limits(stop_s=0.5), timeout_s=60.0, retries=QuickRetries()
    ) as run:
        run.line.toxics.rate = 8000.0
        run.write(128 * KIB, size)
        counts = run.world.until_sealed(1)
        figures = run.figures(counts)
        _exactly_once(run, counts)
        assert figures.wire <= (run.changed + LOG_OVERHEAD) * 1.01 + CALL_OVERHEAD
        return figures


def patient(folder: Path) -> Figures:
    """What was handed to the kernel takes longer to leave than any time-out: it leaves, so it is waited for."""
    with network_run(
        folder, "a deep queue before a thin line", limits=Limits(stop_s=0.5), timeout_s=1.0
    ) as run:
        run.line.toxics.rate = 128.0 * KIB
        run.write(0, 640 * KIB)
        counts = run.world.until_sealed(1)
        _exactly_once(run, counts)
        return run.figures(counts, "with time-outs of 2 s")


def half_open(folder: Path) -> Figures:
    """The peer vanishes within a part, and nobody is told; it is back after the first cycle has failed."""
    with network_run(folder, "half-open", timeout_s=1.0) as run:
        run.line.toxics.rate = 2.0 * MIB
        run.write(0, MIB)
        cycle = threading.Thread(target=_expect_failure, args=(run.world,), daemon=True)
        began, up = time.monotonic(), run.line.up
        cycle.start()
        _wait_until(lambda: run.line.up - up > 256 * KIB)
        run.line.toxics.silent = True
        cycle.join(20)
        assert not cycle.is_alive(), "the source waits for a peer that is gone"
        noticed = time.monotonic() - began
        run.world.check_acknowledged()
        run.line.cut()
        run.line.toxics = Toxics()
        counts = run.world.until_sealed(1)
        _read_once_a_cycle(run, counts)
        assert counts.committed == run.changed + LOG_OVERHEAD
        return run.figures(counts, f"given up after {noticed:.1f} s, with time-outs of 1 s")


def lost_answer(folder: Path) -> Figures:
    """The line breaks at the worst moments: between a part's, or a point's, effect and its answer; and just before the point is sent."""
    with network_run(folder, "lost answers", timeout_s=1.0) as run:
        world, line = run.world, run.line
        total = Counts()

        world.on_arrival = {"part": lambda: _silent_until_dialled(line)}  # the next try gets through
        run.write(0, 256 * KIB)
        counts = world.until_sealed(1)
        assert counts.received == 256 * KIB + LOG_OVERHEAD, "a part that had arrived was sent again"
        _add(total, counts)
        world.on_arrival = {
            "seal": lambda: _gone(line)
        }  # no try gets through: the cycle fails, the point is there
        run.write(0, 64 * KIB)
        counts = _failing(world)
        assert world.journal.status().points == 3
        _add(total, counts)
        _back(line)
        run.write(0, 64 * KIB)
        counts = world.until_sealed(1)
        assert counts.received == 64 * KIB + LOG_OVERHEAD, "a point that had arrived was sent again"
        _add(total, counts)
        world.on_arrival = {"part": lambda: _gone(line)}  # the part is there, the point never leaves
        run.write(0, 64 * KIB)
        counts = _failing(world)
        assert world.journal.status().points == 4
        _add(total, counts)
        _back(line)
        counts = world.until_sealed(1)
        _add(total, counts)
        return run.figures(total, "a cycle that fails before its point is sent again whole")


def _gone(line: ToxicLink) -> None:
    line.toxics.away = True
    line.cut()


def _back(line: ToxicLink) -> None:
    line.toxics.away = line.toxics.silent = False
    line.cut()


def _silent_until_dialled(line: ToxicLink) -> None:
    """Carry again once a new connection was made: what is behind the old one stays lost."""
    line.toxics.silent = True
    before = line.connections

    def watch() -> None:
        _wait_until(lambda: line.connections > before)
        line.toxics.silent = False

    threading.Thread(target=watch, daemon=True).start()


def _failing(world: NetworkWorld) -> Counts:
    _expect_failure(world)
    world.check_acknowledged()
    return world.take()


def flap(folder: Path, *, every_s: float = 0.5, for_s: float = 5.0, rate: float = 2.0 * MIB) -> Figures:
    """All connections break every so often while the guest writes."""
    with network_run(folder, f"flap every {every_s} s for {for_s:.0f} s", size=16 * MIB) as run:
        run.line.toxics.rate = rate
        stop = threading.Event()
        flapping = threading.Thread(target=_flapping, args=(run, stop, every_s))
        flapping.start()
        total, cycles, in_flap = Counts(), 0, 0
        end = time.monotonic() + for_s
        try:
            while time.monotonic() < end:
                run.write((cycles % 24) * 128 * KIB, 128 * KIB)
                cycles += 1
                _add(total, _one(run.world))
        finally:
            in_flap = run.world.journal.status().points
            stop.set()
            flapping.join()
        run.line.toxics.rate = None
        _add(total, run.world.until_sealed(2))
        figures = run.figures(total, f"{in_flap - 1} points during it")
        assert figures.breaks >= for_s / every_s / 2, "the line has not flapped"
        assert in_flap > 1, "no point got through"
        assert total.committed <= run.changed + LOG_OVERHEAD * total.attempts, (
            "what had arrived was sent again"
        )
        assert total.received <= total.committed + (figures.breaks + total.failed) * (
            run.changed // cycles * 3 + LOG_OVERHEAD
        )
        return figures


def flipped_bit(folder: Path) -> Figures:
    """One bit differs below TLS, once in a part and once in a request's head: the connection ends, nothing else is taken."""
    with network_run(folder, "a flipped bit") as run:
        first = run.line.connections
        run.world.failed()  # a new connection for the cycle
        run.line.flip_at = [-1] * first + [300 * KIB, 5000]
        run.write(0, MIB)
        counts = run.world.until_sealed(2)
        figures = run.figures(counts)
        _read_once_a_cycle(run, counts)
        assert figures.connections >= 2, "nobody has noticed the bit"
        assert counts.committed == run.changed + LOG_OVERHEAD
        assert counts.received < 3 * (run.changed + LOG_OVERHEAD)
        return figures


SCENARIOS: Final[Mapping[str, Callable[[Path], Figures]]] = {
    "latency": latency,
    "loss": loss,
    "thin": thin,
    "patient": patient,
    "half-open": half_open,
    "lost-answer": lost_answer,
    "flap": flap,
    "bit": flipped_bit,
}


# -- inside -------------------------------------------------------------------------------------------------


def _exactly_once(run: Run, counts: Counts) -> None:
    assert counts.read == run.due, "more was read than what changed"
    assert counts.received == counts.committed == run.changed + LOG_OVERHEAD, (
        "more was sent than what changed"
    )


def _read_once_a_cycle(run: Run, counts: Counts) -> None:
    assert counts.read <= counts.attempts * run.due, "more was read than what changed"


def _one(world: NetworkWorld) -> Counts:
    try:
        world.run()
    except SecondSiteError as error:
        world.counts.failed += 1
        world.counts.codes.append(error.code)
        world.failed()
        world.check_acknowledged()
    return world.take()


def _expect_failure(world: NetworkWorld) -> None:
    try:
        world.run()
    except SecondSiteError as error:
        world.counts.failed += 1
        world.counts.codes.append(error.code)
        world.failed()
        return
    raise AssertionError("a cycle succeeded over a dead line")


def _add(total: Counts, more: Counts) -> None:
    for name, value in vars(more).items():
        setattr(total, name, getattr(total, name) + value)


def _flapping(run: Run, stop: threading.Event, every_s: float) -> None:
    while not stop.wait(every_s):
        run.line.cut()


def _wait_until(holds: Callable[[], bool], otherwise: str = "nothing happens") -> None:
    pause = threading.Event()
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, otherwise
        pause.wait(0.005)
