"""Alert settings: who is told of what. An address is stored and never shown again; only its scheme is."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from secondsite.errors import InvalidInputError
from secondsite.service.context import Context
from secondsite.service.notices.composing import Message
from secondsite.service.notices.sending import kind_of, send, understood
from secondsite.service.store import notices, vaults
from secondsite.service.store.notices import Receiver
from secondsite.service.usecases.setup import checked_name
from secondsite.service.vocabulary import Severity

PER_MINUTE: Final = 10
RECEIVERS_MAX: Final = 16
TEST_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class WantedReceiver:
    """A receiver as it is asked for; without an address the one that is stored stays."""

    name: str
    url: str | None = None


def alert_settings(ctx: Context) -> dict[str, Any]:
    """Return the settings, without any address."""
    with ctx.store.reading() as tx:
        found = notices.settings(tx)
        waiting = notices.pending(tx)
        return {
            "enabled": found is not None and found.enabled,
            "severities": [] if found is None else found.severities,
            "per_minute": PER_MINUTE if found is None else found.per_minute,
            "updated": None if found is None else found.updated,
            "receivers": [
                {
                    "name": receiver.name,
                    "kind": kind_of(receiver.url),
                    "sent": receiver.sent,
                    "failed": receiver.failed,
                    "pending": waiting.get(receiver.id, 0),
                    "last_sent": receiver.last_sent,
                    "last_error": receiver.last_error,
                }
                for receiver in notices.receivers(tx)
            ],
        }


def put_alert_settings(
    ctx: Context,
    *,
    enabled: bool,
    severities: Sequence[Severity],
    per_minute: int,
    receivers: Sequence[WantedReceiver],
) -> None:
    """Replace the settings. A receiver that is not named goes; one that is named without an address keeps the stored one."""
    _check(receivers)
    now = ctx.clock()
    with ctx.store.transaction() as tx:
        there = {receiver.name: receiver for receiver in notices.receivers(tx)}
        wanted = {receiver.name for receiver in receivers}
        for name, receiver in there.items():
            if name not in wanted:
                notices.remove_receiver(tx, receiver.id)
        for new in receivers:
            known = there.get(new.name)
            if known is None and new.url is None:
                raise InvalidInputError(f"receiver {new.name!r} has no address", hint="give its url")
            if known is None and new.url is not None:
                notices.add_receiver(tx, ctx.new_id(), new.name, new.url, now)
            elif known is not None and new.url is not None:
                notices.change_url(tx, known.id, new.url)
        notices.put_settings(
            tx,
            enabled=enabled,
            severities=sorted({severity.value for severity in severities}),
            per_minute=per_minute,
            now=now,
        )


def _check(receivers: Sequence[WantedReceiver]) -> None:
    if len(receivers) > RECEIVERS_MAX:
        raise InvalidInputError(
            f"at most {RECEIVERS_MAX} receivers", hint="use a list or a group as receiver"
        )
    if len({receiver.name for receiver in receivers}) != len(receivers):
        raise InvalidInputError("two receivers have the same name")
    for receiver in receivers:
        checked_name(receiver.name)
        if receiver.url is not None and not understood(receiver.url):
            raise InvalidInputError(
                f"the address of receiver {receiver.name!r} is not understood",
                hint="mailtos://user:password@host?to=..., jsons://host/path, or any other that apprise knows",
            )


def test_receivers(ctx: Context) -> list[dict[str, Any]]:
    """Send a test to every receiver at once, whatever is enabled; returns for each whether it arrived, and if not, why."""
    with ctx.store.reading() as tx:
        receivers, vault = notices.receivers(tx), vaults.get_vault(tx).name
    message = Message(f"[test] {vault}", "This is a test of the vault's notices.", Severity.INFO, ())
    trials = [_Trial(receiver, message) for receiver in receivers]
    end = time.monotonic() + TEST_WAIT_S
    return [trial.wait(max(0.0, end - time.monotonic())) for trial in trials]


class _Trial:
    """A test message on its way to one receiver."""

    def __init__(self, receiver: Receiver, message: Message) -> None:
        self._name = receiver.name
        self._outcome: list[str | None] = []
        self._began = time.monotonic()
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, args=(receiver.url, message), daemon=True)
        self._thread.start()

    def _run(self, url: str, message: Message) -> None:
        try:
            outcome = send(url, message)
        except Exception as error:  # noqa: BLE001 - whatever breaks in a receiver's driver is the answer
            outcome = f"sending broke: {type(error).__name__}"
        self._seconds = time.monotonic() - self._began
        self._outcome.append(outcome)

    def wait(self, timeout_s: float) -> dict[str, Any]:
        """Return what became of it."""
        self._thread.join(timeout_s)
        if not self._outcome:
            error: str | None = f"no answer within {TEST_WAIT_S:.0f} s"
            return {"name": self._name, "delivered": False, "seconds": TEST_WAIT_S, "error": error}
        error = self._outcome[0]
        seconds = round(self._seconds, 3)
        return {"name": self._name, "delivered": error is None, "seconds": seconds, "error": error}
