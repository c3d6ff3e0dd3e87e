"""Stepping down: the old side's machine stops, is locked, and stays so until this side is told to take over again.

Used by the service's order (`source.demote`), by a source that a running other side refuses (self-fencing), and by the
gate after a boot. The intention is durable first: a node that dies amid it finishes it when it runs again (`ensure`).
Nothing is lost: the last acknowledged point, the digest tables and the bitmap stay for the way back.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog

from secondsite.errors import ConflictError, NotFoundError, StaleEpochError
from secondsite.fabric.port import Fabric, PowerState
from secondsite.model.ids import Epoch, ItemId
from secondsite.node.records import ItemRecord, ItemStore, Role, require_role
from secondsite.node.source.replicator import Replicators

LOCK_REASON: Final = "failed over to the other site by Second Site"
ATTEMPTS: Final = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fence:
    """See the module's docstring. The caller holds the item's lock."""

    items: ItemStore
    replicators: Replicators
    fabric: Fabric

    def demote(self, item: ItemId, epoch: Epoch) -> dict[str, Any]:
        """Give the machine up to the side that writes under `epoch`. Observed: it is off and locked. Repeatable.

        Raises:
            StaleEpochError: this side was told to run under that epoch or a later one; the order is late.
        """
        record = self.items.get(item)
        require_role(record, Role.SOURCE, Role.PREPARING, Role.PREPARED, Role.STANDBY)
        if epoch < record.epoch or (epoch == record.epoch and record.role is not Role.STANDBY):
            raise StaleEpochError(
                f"{record.name} is to step down for epoch {epoch}, but is at epoch {record.epoch} here",
                item=item,
                epoch=epoch,
                current=record.epoch,
            )
        if record.role is not Role.STANDBY:
            record = self._give_up(record, epoch)
        elif epoch > record.epoch:
            record = self.items.change(item, epoch=epoch)
        record = self.ensure(record)
        return {"ran": record.ran, "diverged": record.diverged}

    def ensure(self, record: ItemRecord) -> ItemRecord:
        """Have the machine of a standby off and locked; what ran in spite of that may have written."""
        for _ in range(ATTEMPTS):
            power = self._power(record)
            if power is None or (power is PowerState.OFF and self.fabric.locked(record.vm) is not None):
                return record
            if power is not PowerState.OFF:
                log.warning("the power of a machine that was superseded is cut", item=record.item)
                record = self.items.change(record.item, diverged=True)
                self.fabric.power_off(record.vm)
            with suppress(NotFoundError):  # a transient machine ends with its power; looked at once more
                self.fabric.lock_power(record.vm, LOCK_REASON)
        raise ConflictError(
            f"{record.name} is started again and again", hint="find out who starts it, then try again"
        )

    def _give_up(self, record: ItemRecord, epoch: Epoch) -> ItemRecord:
        self.replicators.stop(record.item)
        record = self.items.get(record.item)
        power = self._power(record)
        runs = power not in (None, PowerState.OFF)
        sealed = record.role is Role.PREPARED and not runs and self._is_locked(record)
        ran = runs or (
            record.runs if record.held is not None else record.role is not Role.SOURCE and record.ran
        )
        log.warning("stepping down", item=record.item, epoch=epoch, before=record.epoch, ran=ran)
        return self.items.change(
            record.item,
            role=Role.STANDBY,
            epoch=epoch,
            ran=ran,
            diverged=not sealed,
            held=None,
            compare=False,
            **({} if sealed else {"images": {}, "marks": {}}),
        )

    def _power(self, record: ItemRecord) -> PowerState | None:
        try:
            return self.fabric.power(record.vm)
        except NotFoundError:
            return None  # somebody removed it: there is nothing to keep from running

    def _is_locked(self, record: ItemRecord) -> bool:
        try:
            return self.fabric.locked(record.vm) is not None
        except NotFoundError:
            return False
