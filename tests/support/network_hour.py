"""The line is away for an hour on injected clocks: the node's real replicator tries, the real service watches what the node reports.

Time is turned by the scenario: it waits until the replicator says when it will try again, turns both clocks by so much (in steps, with a report and a look of the service
in each, as a node and a service do), and wakes the replicator at that very moment.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from secondsite.model.units import KIB, MIB
from secondsite.node.source.replicator import Replicator
from secondsite.service.health.keeper import keep
from secondsite.service.monitor import look
from secondsite.service.store import events
from secondsite.service.usecases import reports
from secondsite.ship.backoff import EAGER_STEPS_S, QuickRetries
from support.cycle_world import ITEM
from support.network_scenarios import LOG_OVERHEAD, Figures, Run, network_run
from support.network_world import NetworkWorld
from support.service_world import World as Service

HOUR_S: Final = 3600.0
REPORT_S: Final = 30.0
ATTEMPTS_MAX: Final = len(EAGER_STEPS_S) + 2
"""Tries in an hour: the steps of the back-off add up to 55 minutes."""


class TurnedClock:
    """A monotonic clock that the scenario turns, and that sleeping turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@dataclass
class Hour:
    """What was seen while the line was away."""

    waits: list[float] = field(default_factory=list)
    alerts: Counter[str] = field(default_factory=Counter)


def hour(folder: Path) -> Figures:
    """See the module's docstring."""
    clock = TurnedClock()
    options: dict[str, Any] = {"sleep": clock.sleep, "monotonic": clock, "retries": QuickRetries()}
    with (
        network_run(folder / "net", "a cut of an hour", **options) as run,
        _service(folder / "service") as service,
        _replicating(run.world, clock) as replicator,
    ):
        item = run.world.items.get(ITEM)
        seen = Hour()
        _until(lambda: replicator.idle and replicator.outcomes, "the first cycle")
        run.world.take()
        _cut_within_a_part(run, replicator)
        _turn_the_hour(run, replicator, clock, service, seen)
        first_due = run.due
        run.write(MIB + 512 * KIB, 64 * KIB)  # also the guest went on
        done = len(replicator.outcomes)
        run.line.toxics.away, run.line.toxics.rate = False, None
        replicator.wake()
        _until(lambda: len(replicator.outcomes) > done and replicator.idle, "a point after the hour")
        failed = run.world.items.get(ITEM).counters["failed_cycles"] - item.counters.get("failed_cycles", 0)
        replicator.stop()
        _report(service, replicator, seen, over=True)
        counts = run.world.take()
        counts.failed = failed
        assert failed <= ATTEMPTS_MAX, f"{failed} tries in an hour"
        assert seen.waits == sorted(seen.waits), "the back-off does not grow"
        assert counts.read <= first_due + run.due, "a try that could not send has read the disk"
        assert counts.committed <= run.changed + 2 * LOG_OVERHEAD
        assert counts.received <= counts.committed + MIB + LOG_OVERHEAD, (
            "more was sent again than the cut part"
        )
        for code in ("cannot-send", "rpo-exceeded"):
            assert seen.alerts[code] <= 1, f"{seen.alerts[code]} alerts {code}"
        assert seen.alerts["cannot-send"] == seen.alerts["cannot-send-over"] == 1, dict(seen.alerts)
        waits = ", ".join(f"{wait:.0f}" for wait in seen.waits)
        return run.figures(counts, f"waits {waits} s; events {dict(seen.alerts)}")


def _cut_within_a_part(run: Run, replicator: Replicator) -> None:
    run.line.toxics.rate = 2.0 * MIB
    run.write(0, MIB)
    up = run.line.up
    replicator.wake()
    _until(lambda: run.line.up - up > 256 * KIB, "a part under way")
    run.line.toxics.away = True
    run.line.cut()


def _turn_the_hour(
    run: Run, replicator: Replicator, clock: TurnedClock, service: Service, seen: Hour
) -> None:
    end = clock.now + HOUR_S
    failures = 0
    while clock.now < end:
        failures += 1
        _until(partial(_has_failed, run.world, replicator, failures), "a failed try")
        run.world.check_acknowledged()
        assert failures <= ATTEMPTS_MAX, "too many tries"
        left = float(replicator.status()["retry_in_s"])
        seen.waits.append(round(left))
        until = min(end, clock.now + left)
        while clock.now < until:
            step = min(REPORT_S, until - clock.now)
            clock.sleep(step)
            service.clock.turn(seconds=step)
            _report(service, replicator, seen)
        if clock.now < end:
            replicator.wake()


def _has_failed(world: NetworkWorld, replicator: Replicator, times: int) -> bool:
    failed = int(world.items.get(ITEM).counters.get("failed_cycles", 0))
    return failed >= times and replicator.status()["retry_in_s"] is not None


def _report(service: Service, replicator: Replicator, seen: Hour, *, over: bool = False) -> None:
    """What the node says now goes to the service, which looks."""
    item = service.item()
    status = replicator.status()
    entry = {
        "item": item.id,
        "role": "source",
        "epoch": item.epoch,
        "phase": status["phase"],
        "error": status["error"],
    }
    if over:
        entry |= {"phase": "idle"}
        service.point(item)
    reports.take_report(service.ctx, item.source_node_id, {"items": [entry]})
    reports.sign_of_life(service.ctx, item.journal_node_id)
    keep(service.ctx)
    look(service.ctx)
    with service.store.reading() as tx:
        told = Counter(event.code for event in events.listed(tx, after=0, limit=1000))
    seen.alerts = Counter(
        {code: count for code, count in told.items() if code.startswith(("cannot-send", "rpo"))}
    )


@contextmanager
def _service(folder: Path) -> Iterator[Service]:
    folder.mkdir(parents=True)
    service = Service(folder)
    service.two_sites()
    service.protected()
    service.point(service.item())
    yield service
    service.close()


@contextmanager
def _replicating(world: NetworkWorld, clock: TurnedClock) -> Iterator[Replicator]:
    replicator = world.replicator(monotonic=clock)
    replicator.start()
    try:
        yield replicator
    finally:
        replicator.stop()


def _until(holds: Callable[[], Any], what: str) -> None:
    pause = threading.Event()
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, f"still waiting for {what}"
        pause.wait(0.002)
