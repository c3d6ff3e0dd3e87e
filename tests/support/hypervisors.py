"""Two sites' hypervisors for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from secondsite.lab.hypervisor import Hypervisor


class HypervisorPair(NamedTuple):
    """Both are running; each has `uri`, `storage` (folder for images) and `connect()`."""

    primary: Hypervisor
    recovery: Hypervisor


@contextmanager
def running_pair(folder: Path) -> Iterator[HypervisorPair]:
    """Start both, and end them with everything that runs in them, whatever happened between."""
    pair = HypervisorPair(Hypervisor(folder / "a", "a"), Hypervisor(folder / "b", "b"))
    with ExitStack() as stack:
        for hypervisor in pair:
            stack.enter_context(hypervisor)
            hypervisor.define_networks()
        yield pair
