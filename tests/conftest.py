"""Fixtures that every test may use. What they are made of is in tests/support/."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.testing
from hypothesis import HealthCheck, settings

from secondsite.lab.guest.builder import GuestFiles
from secondsite.lab.hypervisor import Hypervisor
from support.guests import built_guest
from support.hypervisors import HypervisorPair, running_pair
from support.leftovers import Leftovers, short_folder

# The runner of commands builds their whole tree anew for each call, which is most of the time of those that have little to do.
typer.testing._get_command = cache(typer.testing._get_command)

# The same examples on every machine, and none fails because the machine is busy: what is landed must be judged alike.
# To look further, give pytest --hypothesis-profile=default.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Fail the session if a process that a test started outlives it."""
    leftovers = Leftovers()
    yield
    if found := leftovers.end_and_describe():
        pytest.fail("tests left processes of theirs behind (ended now):\n" + "\n".join(found), pytrace=False)


@pytest.fixture(autouse=True)
def _untraced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gather no coverage in what does the same again for each step: its steps are covered once, by other tests."""
    if request.node.get_closest_marker("every_step") is None:
        yield
        return
    here, threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]  # the signature knows no None
    try:
        yield
    finally:
        threading.settrace(threads)  # type: ignore[arg-type]
        sys.settrace(here)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets, which tmp_path's is not."""
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def hypervisor_pair() -> Iterator[HypervisorPair]:
    """Two running hypervisors, `.primary` and `.recovery`, for the whole session: use names of your own in them."""
    with short_folder() as folder, running_pair(folder) as pair:
        yield pair


@pytest.fixture(scope="session")
def hypervisor(hypervisor_pair: HypervisorPair) -> Hypervisor:
    """One running hypervisor: the pair's primary one."""
    return hypervisor_pair.primary


@pytest.fixture(scope="session")
def guest_files(hypervisor_pair: HypervisorPair) -> GuestFiles:
    """The lab guest's kernel and initrd; support.guests.running_guest starts one."""
    return built_guest(hypervisor_pair.primary.directory.parent)
