"""Whether a machine starts with its host: while this node answers for it, the node decides, not the hypervisor.

The hypervisor's flag is off and kept in the record; what somebody sets meanwhile is taken over; the end of the
protection gives it back. See source/gate.py for why.
"""

from __future__ import annotations

from contextlib import suppress

import structlog

from secondsite.errors import NotFoundError
from secondsite.fabric.port import Fabric, PowerState
from secondsite.node.records import ItemRecord, ItemStore

log = structlog.get_logger(__name__)


def look_at(items: ItemStore, fabric: Fabric, record: ItemRecord) -> ItemRecord:
    """Note whether the machine runs, and take over its autostart if somebody set it."""
    try:
        runs = fabric.power(record.vm) is not PowerState.OFF
        if runs != record.runs:
            record = items.change(record.item, runs=runs)
        if fabric.autostart(record.vm):
            record = items.change(record.item, autostart=True)  # first: a cut must not lose it
            fabric.set_autostart(record.vm, on=False)
    except NotFoundError:
        log.debug("the machine is gone", item=record.item)
    return record


def give_back_autostart(fabric: Fabric, record: ItemRecord) -> None:
    """The protection ends: the hypervisor decides again, if it has the machine still."""
    if record.autostart:
        with suppress(NotFoundError):
            fabric.set_autostart(record.vm, on=True)
