"""What happened on this node and the service should tell: kept until a report has carried it, at most EVENTS_MAX.

A report that may not have arrived is sent again with the same events; the service knows them by their ids. A node that is
restarted forgets what it has not told: events are news, not state (state stands in the report itself).
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Literal

from secondsite.model.ids import ItemId

EVENTS_MAX: Final = 500

Severity = Literal["info", "warning", "critical"]


class NodeEvents:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._sent: list[dict[str, Any]] = []

    def tell(
        self,
        item: ItemId | None,
        code: str,
        message: str,
        *,
        severity: Severity = "warning",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an event to the next report."""
        event = {
            "id": uuid.uuid4().hex,
            "item": item,
            "code": code,
            "message": message,
            "severity": severity,
            "details": dict(details or {}),
        }
        with self._lock:
            self._waiting.append(event)

    def take(self) -> list[dict[str, Any]]:
        """Return what a report is to carry. What the one before carried has arrived, unless `put_back` was called."""
        with self._lock:
            self._sent = list(self._waiting)
            self._waiting.clear()
            return list(self._sent)

    def put_back(self) -> None:
        """The last report may not have arrived."""
        with self._lock:
            self._waiting.extendleft(reversed(self._sent))
            self._sent = []
