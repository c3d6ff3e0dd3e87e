"""The outbox's thread: fills it from the events and empties it, each receiver in a thread of its own.

Promises: each event of a chosen severity reaches each receiver at least once, or is counted as failed after the last of its bounded
tries; nothing else of the service waits for a receiver; a receiver gets at most so many messages a minute, the last of
them a digest of all that is left. What it does not do: a notice that was sent and not yet noted when the service died is sent again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from secondsite.service.context import Context
from secondsite.service.notices.composing import Message, Names, compose
from secondsite.service.notices.sending import send
from secondsite.service.store import items, nodes, notices, vaults
from secondsite.service.store.database import Transaction
from secondsite.service.store.notices import Receiver

log = logging.getLogger("secondsite.service")

EVERY_S: Final = 2.0
PRUNE_EVERY_S: Final = 600.0
CLOSE_S: Final = 5.0
_MINUTE_S: Final = 60.0


@dataclass(slots=True)
class Dispatch:
    """See the module's docstring. `send` returns None or why a message did not arrive."""

    ctx: Context
    every_s: float = EVERY_S
    send: Callable[[str, Message], str | None] = send
    monotonic: Callable[[], float] = time.monotonic
    _made: dict[str, deque[float]] = field(default_factory=dict, init=False)
    _busy: dict[str, threading.Thread] = field(default_factory=dict, init=False)
    _pruned: float | None = field(default=None, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._loop, name="notices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End. A receiver that hangs is waited for only briefly: its notices are still in the outbox."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.wait(CLOSE_S)

    def wait(self, timeout_s: float) -> bool:
        """Wait for what is being sent; False if some of it still is."""
        end = time.monotonic() + timeout_s
        for thread in list(self._busy.values()):
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._busy.values())

    def look(self) -> None:
        """Fill the outbox, and begin to tell each receiver that is not being told something what is due for it."""
        now = self.ctx.clock()
        with self.ctx.store.reading() as tx:
            fresh = notices.unseen(tx)
        if fresh:
            with self.ctx.store.transaction() as tx:
                notices.fill(tx, now)
        with self.ctx.store.reading() as tx:
            found = notices.settings(tx)
            if found is None or not found.enabled:
                return
            waiting = notices.pending(tx)
            work = [
                (receiver, messages)
                for receiver in notices.receivers(tx)
                if waiting.get(receiver.id) and not self._is_busy(receiver)
                if (messages := self._messages(tx, receiver, found.per_minute))
            ]
        for receiver, messages in work:
            thread = threading.Thread(
                target=self._tell, args=(receiver, messages), name=f"notice-{receiver.name[:12]}", daemon=True
            )
            self._busy[receiver.id] = thread
            thread.start()
        self._prune()

    def _is_busy(self, receiver: Receiver) -> bool:
        thread = self._busy.get(receiver.id)
        return thread is not None and thread.is_alive()

    def _messages(self, tx: Transaction, receiver: Receiver, per_minute: int) -> list[Message]:
        due = notices.due(tx, receiver.id, self.ctx.clock())
        if not due:
            return []
        made = self._made.setdefault(receiver.id, deque())
        now = self.monotonic()
        while made and made[0] <= now - _MINUTE_S:
            made.popleft()
        messages = compose(due, per_minute - len(made), _names(tx))
        made.extend(now for _ in messages)
        return messages

    def _tell(self, receiver: Receiver, messages: list[Message]) -> None:
        try:
            for message in messages:
                if self._stop.is_set():
                    return
                error = self._send(receiver, message)
                now = self.ctx.clock()
                with self.ctx.store.transaction() as tx:
                    if error is None:
                        notices.sent(tx, receiver.id, message.event_ids, now)
                    else:
                        notices.not_sent(tx, receiver.id, message.event_ids, now, error)
        except Exception:
            # What was not noted is still due: the next look begins again.
            log.exception("notices to %s could not be noted", receiver.name)

    def _send(self, receiver: Receiver, message: Message) -> str | None:
        try:
            return self.send(receiver.url, message)
        except Exception as error:  # noqa: BLE001 - a receiver's driver may raise anything; it is one more failed try
            log.warning("a notice to %s broke: %s", receiver.name, type(error).__name__)
            return f"sending broke: {type(error).__name__}"

    def _prune(self) -> None:
        now = self.monotonic()
        if self._pruned is not None and now < self._pruned + PRUNE_EVERY_S:
            return
        self._pruned = now
        with self.ctx.store.transaction() as tx:
            notices.prune(tx, self.ctx.clock())

    def _loop(self) -> None:
        while not self._stop.wait(self.every_s):
            try:
                self.look()
            except Exception:
                log.exception("notices could not be looked at; it is tried again")


def _names(tx: Transaction) -> Names:
    return Names(
        vaults.get_vault(tx).name,
        {item.id: item.name for item in items.listed(tx, deleted=True)},
        {node.id: node.name for node in nodes.listed(tx, revoked=True)},
    )
