"""Which report of each node is the newest: one that the node has given up waits for its turn here, and is not to be taken after its successor.

Reports of one run of a node are numbered; a node makes the next one only when it has given up, or got an answer to, the one before. Kept in
memory: when the service ends, what waited in it has ended too.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secondsite.errors import InvalidInputError
from secondsite.model.ids import NodeId


@dataclass(slots=True)
class Arrivals:
    """Thread-safe."""

    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _newest: dict[NodeId, tuple[str, int]] = field(default_factory=dict, init=False)

    def arrived(self, node: NodeId, report: Mapping[str, Any]) -> Ticket:
        """Note a report; InvalidInputError if its number does not parse. One without a number is never overtaken, and overtakes none."""
        said = report.get("report")
        if said is None:
            return Ticket(self, node, None)
        run, number = (said.get("run"), said.get("number")) if isinstance(said, dict) else (None, None)
        if (
            not isinstance(run, str)
            or len(run) > 64
            or not isinstance(number, int)
            or isinstance(number, bool)
        ):
            raise InvalidInputError("report is not the number of a report", field="report")
        with self._lock:
            newest = self._newest.get(node)
            if newest is None or newest[0] != run or newest[1] < number:
                self._newest[node] = (run, number)
        return Ticket(self, node, (run, number))

    def _overtaken(self, node: NodeId, mine: tuple[str, int]) -> bool:
        with self._lock:
            run, number = self._newest[node]
        return run == mine[0] and mine[1] < number


@dataclass(frozen=True, slots=True)
class Ticket:
    """A report that arrived."""

    _arrivals: Arrivals
    _node: NodeId
    _number: tuple[str, int] | None

    @property
    def overtaken(self) -> bool:
        """Whether a later report of the same run of the node has arrived meanwhile. Ask when nobody else of the node can be taken before you are."""
        return self._number is not None and self._arrivals._overtaken(self._node, self._number)
