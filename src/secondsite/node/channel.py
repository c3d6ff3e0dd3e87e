"""The channel to the service: polls for commands, sends results, progress and reports. Outbound only.

The service may be away for as long as it likes. Results wait in memory until they are delivered (they are files,
too, so a command that is asked for again after a restart is answered from there); progress that cannot be delivered is dropped;
reports are made anew each time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from secondsite.errors import InvalidInputError, Retry, SecondSiteError
from secondsite.model.ids import CommandId
from secondsite.node.executor import Command
from secondsite.node.removals import Removals
from secondsite.ship.failover import Caller

POLL_S: Final = 20
RETRY_MAX_S: Final = 15.0
STANDBY_POLL_S: Final = 5.0
STANDBY_RETRY_MAX_S: Final = 2.0
PROGRESS_EVERY_S: Final = 0.5
REPORT_EVERY_S: Final = (1.0, 5.0)
REPORT_ITEMS_PER_S: Final = 10
"""A node with so many items or fewer reports each second, one with more in proportion less often, but every five seconds."""

log = structlog.get_logger(__name__)


class NotMadeError(Exception):
    """A report could not be made, whatever the reason: this is no failure of the way to the service."""


class Channel:
    """Three threads (poll, results, reports) over kept connections. `submit` takes the commands that arrive."""

    def __init__(
        self,
        client: Caller,
        report: Callable[[bool], Mapping[str, Any]],
        report_lost: Callable[[], None],
        *,
        poll_s: float = POLL_S,
        retry_max_s: float = RETRY_MAX_S,
        removals: Removals | None = None,
    ) -> None:
        """With a standby service, poll and try again in shorter steps: its turn comes within seconds."""
        self._poll_s, self._retry_max_s = poll_s, retry_max_s
        self._removals = removals
        self._client = client
        self._report = report
        self._report_lost = report_lost
        self._report_lock = threading.Lock()
        self._stop = threading.Event()
        self._wake_report = threading.Event()
        self._every_s = REPORT_EVERY_S[0]
        self._outbox: deque[tuple[CommandId, Mapping[str, Any]]] = deque()
        self._outbox_ready = threading.Event()
        self._progress_at: dict[CommandId, float] = {}
        self._threads: list[threading.Thread] = []
        self._submit: Callable[[Command], None] | None = None
        self._running: Callable[[], list[CommandId]] = list
        self.connected = False

    def start(self, submit: Callable[[Command], None], running: Callable[[], list[CommandId]]) -> None:
        """Begin."""
        self._submit, self._running = submit, running
        for target in (self._poll_loop, self._result_loop, self._report_loop):
            thread = threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop; what is in the outbox is tried once more."""
        self._stop.set()
        self._outbox_ready.set()
        self._wake_report.set()
        self._client.close()
        for thread in self._threads:
            # A poll may hang for as long as the service holds it. It owns nothing that must be put away.
            thread.join(0.1 if thread.name == "poll_loop" else 5)

    # -- answers (the executor's port) ---------------------------------------------------------------------

    def result(self, command: CommandId, outcome: Mapping[str, Any]) -> None:
        """Queue a result for delivery, after a report of the state that it made."""
        self._progress_at.pop(command, None)
        self._outbox.append((command, outcome))
        self._outbox_ready.set()

    def progress(self, command: CommandId, fields: Mapping[str, Any]) -> bool:
        """Send progress, at most twice a second; return whether the service wants the command cancelled."""
        now = time.monotonic()
        if now - self._progress_at.get(command, 0.0) < PROGRESS_EVERY_S:
            return False
        self._progress_at[command] = now
        try:
            answer = self._client.post("/node/v1/progress", {"command": command, **fields}, timeout_s=5)
        except SecondSiteError:
            return False
        return bool(answer.get("cancelled"))

    def wake_report(self) -> None:
        """Report now: something changed that people wait for."""
        self._wake_report.set()

    # -- loops ---------------------------------------------------------------------------------------------

    def _poll_loop(self) -> None:
        wait_s = 0.5
        while not self._stop.is_set():
            try:
                body = {"wait_s": self._poll_s, "running": self._running()}
                if self._removals is not None:
                    body["removed"] = self._removals.mark
                answer = self._client.post(
                    "/node/v1/poll", body, timeout_s=self._poll_s + min(self._poll_s, 15)
                )
                self.connected = True
                wait_s = 0.5
                for fields in answer.get("commands", []):
                    self._take(fields)
                if self._removals is not None and "removed" in answer:
                    self._removals.take(answer["removed"])
            except SecondSiteError as error:
                if self.connected:
                    log.warning("the service does not answer", error=error.to_dict())
                self.connected = False
                self._stop.wait(wait_s)
                wait_s = min(self._retry_max_s, wait_s * 2)
            except Exception:
                # This thread must outlive whatever it meets: without it the node hears nothing.
                log.exception("a poll broke")
                self._stop.wait(wait_s)
                wait_s = min(self._retry_max_s, wait_s * 2)

    def _take(self, fields: object) -> None:
        assert self._submit is not None
        try:
            self._submit(Command.parse(fields))
        except InvalidInputError as error:
            log.warning("a command does not parse", error=error.to_dict())
        except RuntimeError:
            log.info("a command arrived while the node stops; it will be delivered again")

    def _result_loop(self) -> None:
        wait_s = 0.5
        while True:
            self._outbox_ready.wait()
            self._outbox_ready.clear()
            while self._outbox:
                command, outcome = self._outbox[0]
                try:
                    # First what the command changed, so that nobody sees "done" with the facts of before.
                    self._report_first()
                    self._client.post("/node/v1/result", {"command": command, **outcome}, timeout_s=10)
                    self._outbox.popleft()
                    wait_s = 0.5
                except SecondSiteError as error:
                    if error.retry == "never" and error.code in {"not_found", "conflict", "forbidden"}:
                        log.warning("the service refuses a result", command=command, error=error.to_dict())
                        self._outbox.popleft()
                        continue
                    if self._stop.wait(wait_s):
                        return
                    wait_s = min(self._retry_max_s, wait_s * 2)
                except Exception:
                    log.exception("a result could not be delivered", command=command)
                    if self._stop.wait(wait_s):
                        return
                    wait_s = min(self._retry_max_s, wait_s * 2)
            if self._stop.is_set():
                return

    def _report_first(self) -> None:
        """Send a report. Only the way to the service holds up a result, never a fault of the report or of what it is made of."""
        try:
            self._send_report(with_inventory=False)
        except SecondSiteError as error:
            if error.code != "internal" and error.retry != Retry.NEVER:
                raise
            log.warning("a result goes without its report", error=error.to_dict())
        except Exception:
            log.exception("a result goes without its report")

    def _send_report(self, *, with_inventory: bool) -> None:
        # One at a time: reports tell differences, so their order matters.
        with self._report_lock:
            try:
                body = self._make_report(with_inventory)
                self._client.post("/node/v1/report", body, timeout_s=15)
                self._every_s = report_every_s(len(body.get("items", ())))
            except BaseException:
                # One that could not be made has not arrived either: the next must not take it for told.
                self._report_lost()
                raise

    def _make_report(self, with_inventory: bool) -> Mapping[str, Any]:
        try:
            return self._report(with_inventory)
        except Exception as error:
            raise NotMadeError("a report could not be made") from error

    def _report_loop(self) -> None:
        failures = 0
        inventory_due = 0.0
        while not self._stop.is_set():
            with_inventory = time.monotonic() >= inventory_due
            try:
                self._send_report(with_inventory=with_inventory)
                failures = 0
                if with_inventory:
                    inventory_due = time.monotonic() + 5
            except SecondSiteError as error:
                failures += 1
                if failures == 1:
                    log.warning("a report was not delivered", error=error.to_dict())
            except Exception:
                failures += 1
                log.exception("a report could not be made")
            self._wake_report.wait(self._every_s if failures == 0 else min(self._retry_max_s, 2.0**failures))
            self._wake_report.clear()


def report_every_s(items: int) -> float:
    """Return how often a node with so many items tells how they fare. What somebody waits for is told at once anyway."""
    least, most = REPORT_EVERY_S
    return min(most, max(least, items / REPORT_ITEMS_PER_S))
