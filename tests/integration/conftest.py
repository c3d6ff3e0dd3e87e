"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.lab.hypervisor import Hypervisor
from support.fabric_bench import Bench


@pytest.fixture
def bench(hypervisor: Hypervisor, short_path: Path) -> Iterator[Bench]:
    """A bench on the session's hypervisor."""
    bench = Bench(hypervisor, short_path)
    yield bench
    bench.close()


@pytest.fixture
def lone_bench(short_path: Path) -> Iterator[Bench]:
    """A bench on a hypervisor of its own, whose daemon may be stopped and killed."""
    with Hypervisor(short_path / "h", "h") as hypervisor:
        bench = Bench(hypervisor, short_path)
        yield bench
        bench.close()
