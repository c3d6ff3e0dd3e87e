"""Hypervisors of the lab, with the real libvirtd."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.lab.hypervisor import Hypervisor
from support.hypervisors import HypervisorPair

pytestmark = pytest.mark.integration


def test_two_hypervisors_run_side_by_side_and_know_nothing_of_each_other(
    hypervisor_pair: HypervisorPair,
) -> None:
    connections = [hypervisor.connect() for hypervisor in hypervisor_pair]
    definition = (
        "<domain type='qemu'><name>only-here</name><memory>1</memory><os><type>hvm</type></os></domain>"
    )
    domain = connections[0].defineXML(definition)
    try:
        assert "only-here" in [each.name() for each in connections[0].listAllDomains()]
        assert "only-here" not in [each.name() for each in connections[1].listAllDomains()]
    finally:
        domain.undefine()
        for connection in connections:
            connection.close()


def test_a_hypervisor_starts_again_after_a_kill_that_left_its_socket(short_path: Path) -> None:
    hypervisor = Hypervisor(short_path / "h", "h")
    try:
        hypervisor.start()
        first = hypervisor.daemon
        hypervisor.stop_daemon(kill=True)
        assert not hypervisor.is_running
        hypervisor.start()
        assert hypervisor.daemon not in (None, first)
        hypervisor.connect().close()
    finally:
        hypervisor.stop()
    assert hypervisor.daemon is None
    assert hypervisor.guests() == []
