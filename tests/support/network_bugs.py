"""Bugs to plant in the sender and the cycle, so that the network proof can be seen to find them. `scenario` is where each must be found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from secondsite.errors import UnavailableError
from secondsite.node.source import cycle
from secondsite.node.source.belief import Belief
from secondsite.service.store import health
from secondsite.ship import backoff, sender
from secondsite.ship.client import PeerConnection


@dataclass(frozen=True)
class NetworkBug:
    """One mistake; `places`: (where, name, replacement)."""

    scenario: str
    why: str
    places: tuple[tuple[Any, str, Any], ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the mistake within."""
        patches = [patch.object(where, name, instead) for where, name, instead in self.places]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in reversed(patches):
                one.stop()


_SEAL: Final = Belief.seal
_PUT: Final = sender.Sender._put
_SNAPSHOT: Final = cycle.Cycle._snapshot
_KEEP: Final = health.put


def _seal_believed(self: Belief, by: Any, manifest: Any) -> None:
    with suppress(UnavailableError):
        _SEAL(self, by, manifest)


def _put_believed(self: Any, part: Any, stopping: Any) -> None:
    with suppress(UnavailableError):
        _PUT(self, part, stopping)


def _always_missing(_self: Any, _part: Any) -> bool:
    return True


def _without_patience(self: PeerConnection, _timeout_s: float) -> None:
    self.timeout = None
    if self.sock is not None:
        self.sock.settimeout(None)


def _for_ever(_self: Any, _uniform: Any = None) -> Iterator[float]:
    while True:
        yield 0.0


def _at_once(self: Any) -> float:
    self.failures += 1
    return 1.0


def _compare_always(self: Any, stack: Any, capture: Any, record: Any, name: str, consistency: Any) -> Any:
    if record.acked is not None:
        acked = replace(record.acked, checkpoint="")
        record = self._ports.items.change(record.item, acked=acked)
    return _SNAPSHOT(self, stack, capture, record, name, consistency)


def _never_told(tx: Any, row: Any) -> None:
    _KEEP(tx, replace(row, told=False))


BUGS: Final[Mapping[str, NetworkBug]] = {
    "believed-seal": NetworkBug("lost-answer", "a seal without an answer counts as done", ((Belief, "seal", _seal_believed),)),
    "believed-part": NetworkBug("half-open", "a part without an answer counts as sent", ((sender.Sender, "_put", _put_believed),)),
    "sent-again": NetworkBug("lost-answer", "a part that arrived is sent again", ((sender.Sender, "missing_now", _always_missing),)),
    "no-time-out": NetworkBug("half-open", "a silent peer is waited for", ((PeerConnection, "set_timeout", _without_patience),)),
    "endless-retries": NetworkBug("half-open", "quick tries without an end",
        ((backoff.QuickRetries, "delays", _for_ever), (backoff.QuickRetries, "total_s", property(lambda _self: 1e9)))),
    "no-back-off": NetworkBug("hour", "a try each second", ((backoff.CycleBackoff, "failed", _at_once),)),
    "eager-compare": NetworkBug("latency", "whole disks are read for a few blocks", ((cycle.Cycle, "_snapshot", _compare_always),)),
    "alert-flood": NetworkBug("hour", "an alert with every look", ((health, "put", _never_told),)),
}  # fmt: skip
