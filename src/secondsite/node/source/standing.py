"""Asks the target and the service who may run what: the gate's questions over the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from secondsite.errors import UnavailableError
from secondsite.model.ids import Epoch
from secondsite.node.records import ItemRecord
from secondsite.ship.sender import Sender

STANDING_PATH: Final = "/node/v1/standing"
_ASK_S: Final = 5.0


class Getter(Protocol):
    """The service's client."""

    def get(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]: ...


class AskedStanding:
    """`gate.Standing` over the item's own sender and the service's client."""

    def __init__(
        self,
        sender: Callable[[ItemRecord, threading.Event], Sender],
        service: Getter,
        closing: threading.Event,
    ) -> None:
        self._sender = sender
        self._service = service
        self._closing = closing

    def target(self, record: ItemRecord) -> Epoch:
        """Ask the target's listener. It answers only the item's source, and only a target does."""
        if record.peer is None:
            raise UnavailableError(f"{record.name} has no target")
        sender = self._sender(record, self._closing)
        try:
            return sender.status().epoch
        finally:
            sender.close()

    def service(self) -> Mapping[str, Mapping[str, Any]]:
        """Ask the service. An older one knows no such question: no answer, as when it is away."""
        items = self._service.get(STANDING_PATH, timeout_s=_ASK_S).get("items")
        if not isinstance(items, dict):
            raise UnavailableError("the service's answer is not understood")
        return {str(item): entry for item, entry in items.items() if isinstance(entry, dict)}
