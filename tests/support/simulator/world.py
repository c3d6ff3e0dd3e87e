"""Two sites, the network between them, one clock, and everything that could make two runs of a seed differ, taken in hand.

`World` holds what a story plays with; `in_hand` replaces for its length what the product takes from the system: calls on
files (`disk`), sockets (`wire`), threads of the sender (`turns`), time, randomness, and the order of names in folders.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import structlog

from secondsite import durable
from secondsite.capture.bitmaps import QCOW2, ImageInfo
from secondsite.fabric.fake import FakeImage
from secondsite.node import images
from secondsite.node.target import adoption
from secondsite.node.target import commands as target_commands
from secondsite.ship import client, delivery
from support.simulator.disk import READS, STEPS, Disks, SortedScan
from support.simulator.geometry import Geometry, draw
from support.simulator.judge import Judge
from support.simulator.site import Site
from support.simulator.turns import QueueTurns, ThreadingTurns, Turns
from support.simulator.wire import Network, connection_class

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """See the module's docstring. `place`: an empty folder; every name in it is the seed's."""

    def __init__(self, seed: int, place: Path) -> None:
        self.seed = seed
        self.place = place
        self._streams: dict[str, Random] = {}
        self.geometry: Geometry = draw(self.stream("geometry"))
        self.passed_s = 0.0
        self._told: set[datetime] = set()
        self.disks = Disks()
        self.turns = Turns(self.stream("turns"))
        self.network = Network(self.stream("network"), lambda: START + timedelta(seconds=self.passed_s))
        self.network.pause = self.turns.pause
        self.judge = Judge(self)
        self.sites: tuple[Site, ...] = ()

    def begin(self) -> None:
        """Make both sites; the world must be in hand."""
        self.sites = (Site(self, "a"), Site(self, "b"))
        for site in self.sites:
            site.boot()

    def stream(self, name: str) -> Random:
        """Return the source of chance of this name. One for each use, so that a change in one moves no other."""
        if name not in self._streams:
            self._streams[name] = Random(f"{self.seed} {name}")
        return self._streams[name]

    def time(self, skew_s: float) -> datetime:
        """Return a time that no clock of this world has told before."""
        self.passed_s += 0.5
        told = START + timedelta(seconds=self.passed_s + skew_s)
        while told in self._told:
            told += timedelta(microseconds=1)
        self._told.add(told)
        return told

    def monotonic(self) -> float:
        """The clock that never jumps."""
        self.passed_s += 0.001
        return self.passed_s

    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.passed_s += seconds

    def close(self) -> None:
        """End both sites."""
        for view in self.judge.views:
            view.close()
        for site in self.sites:
            site.close()


@contextmanager
def in_hand(world: World) -> Iterator[None]:
    """Replace what the product takes from the system, and be silent about what it logs."""
    tokens = world.stream("tokens")
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for name in (*STEPS, *READS):
            put(os, name, world.disks.through(name, getattr(os, name)))
        put(durable, "punch_hole", world.disks.through("punch_hole", durable.punch_hole))
        put(pathlib.Path, "open", world.disks.opening(pathlib.Path.open))
        put(fcntl, "flock", world.disks.locking)
        put(os, "scandir", SortedScan)
        put(os, "listdir", _sorted(os.listdir))
        put(os, "urandom", tokens.randbytes)
        put(secrets, "token_hex", lambda count=32: tokens.randbytes(count).hex())
        put(time, "monotonic", world.monotonic)
        put(time, "sleep", world.sleep)
        put(client, "PeerConnection", connection_class(world.network))
        put(delivery, "threading", ThreadingTurns(world.turns))
        put(delivery, "queue", QueueTurns(world.turns))
        put(delivery, "BATCH_MAX", world.geometry.batch)
        # No qemu-nbd and no qemu-img: the fabric's images are small files.
        for module in (images, target_commands):
            put(module, "stop_shared", lambda _path, _run: None)
        put(adoption, "image_info", _image_info)
        stack.enter_context(_silent())
        yield


def _sorted(real: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda *args: sorted(real(*args))


def _image_info(path: Path, image_format: str | None = QCOW2) -> ImageInfo:
    return ImageInfo(path, QCOW2, FakeImage.read(path).size, {}, None, has_backing=False)


@contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    old = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**old)
        logging.disable(before)
