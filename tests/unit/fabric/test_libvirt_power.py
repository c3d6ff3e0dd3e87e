"""Power of a domain whose QEMU dies at the wrong moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import libvirt
import pytest

from secondsite.errors import UnavailableError
from secondsite.fabric.connection import Connection, translate
from secondsite.fabric.libvirt_power import Power, Waiting


class DyingDomain:
    """QEMU is gone, and libvirt says so from `noticed` on, in seconds of the test's clock."""

    def __init__(self, noticed: float) -> None:
        self.noticed, self.now = noticed, 0.0

    def state(self) -> tuple[int, int]:
        running = self.now < self.noticed
        return (libvirt.VIR_DOMAIN_RUNNING if running else libvirt.VIR_DOMAIN_SHUTOFF), 0

    def isActive(self) -> bool:
        return self.now < self.noticed

    def XMLDesc(self, _flags: int) -> str:
        return "<domain><name>web</name></domain>"

    def shutdownFlags(self, _flags: int) -> None:
        error = libvirt.libvirtError("Unable to read from monitor: Connection reset by peer")
        error.err = (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC, str(error), 2, "", "", "", -1, -1)
        raise error

    @contextmanager
    def domain(self, vm: str, doing: str) -> Iterator[Any]:
        try:
            yield self
        except libvirt.libvirtError as error:
            raise translate(error, f"{doing} {vm}") from error

    def pause(self, seconds: float) -> None:
        self.now += seconds


def shut_down(domain: DyingDomain) -> bool:
    power = Power(cast("Connection", domain), Waiting(lambda: domain.now, domain.pause))
    return power.shutdown("web", timeout_s=60, cancelled=lambda: False)


def test_a_machine_whose_qemu_dies_while_it_is_shut_down_is_off() -> None:
    """A planned failover was given up for it: "connection reset by peer"."""
    assert shut_down(DyingDomain(noticed=1.5))


def test_a_machine_that_cannot_be_shut_down_and_runs_on_is_an_error() -> None:
    domain = DyingDomain(noticed=1000)
    with pytest.raises(UnavailableError):
        shut_down(domain)
    assert domain.now < 10
