"""Runs the service's commands, each at most once to its end.

A command that is delivered again after it ended answers with the kept result. One whose run was cut by a crash is run
again: handlers are written to be repeated. Commands of one item run one after the other, in the order of arrival;
different items run beside each other. Results are kept as files, the oldest are dropped.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from secondsite import durable
from secondsite.errors import InvalidInputError, SecondSiteError, StaleEpochError
from secondsite.model.ids import CommandId, Epoch, ItemId, parse_item_id
from secondsite.node.records import ItemStore

RESULTS_KEPT: Final = 2000
WORKERS: Final = 128
"""A seeding and a commit take hours: as many of them as a host has machines must not hold up a failover."""
CUT_BY_STOP: Final = frozenset({"cancelled", "stopped"})
"""What a handler ends with because the node stops: no outcome, the command runs again after the start."""
RAISING: Final = ("new_epoch", "next_epoch", "epoch")
"""Arguments that name the epoch which a command leaves behind."""
OF_ANY_EPOCH: Final = frozenset({"target.test_cleanup"})
"""Right under every epoch: it takes away a test, which never wrote for the item. It may be asked for amid a role change, and
come after the epoch was raised."""
_ID_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """One order of the service. `epoch` is the item's epoch as the service knows it."""

    id: CommandId
    kind: str
    item: ItemId | None
    epoch: Epoch
    args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, fields: object) -> Command:
        """Parse a command from the service's answer; InvalidInputError if it is none."""
        if not isinstance(fields, dict):
            raise InvalidInputError("a command is not an object")
        identifier, kind, item = fields.get("id"), fields.get("kind"), fields.get("item")
        epoch, args = fields.get("epoch", 0), fields.get("args") or {}
        if not isinstance(identifier, str) or not 0 < len(identifier) <= 200 or set(identifier) - _ID_CHARS:
            raise InvalidInputError("a command has no usable id")
        if not isinstance(kind, str) or not isinstance(args, dict) or not isinstance(epoch, int):
            raise InvalidInputError(f"command {identifier} is malformed")
        return cls(
            CommandId(identifier), kind, None if item is None else parse_item_id(item), Epoch(epoch), args
        )


class Progress(Protocol):
    """How a handler tells how far it is; raises when the service asked to cancel."""

    def __call__(
        self,
        fraction: float | None = None,
        text: str = "",
        *,
        bytes_done: int | None = None,
        bytes_total: int | None = None,
    ) -> None: ...


Handler = Callable[[Command, Progress], Mapping[str, Any]]


class Answers(Protocol):
    """Where results and progress go: the channel to the service. Neither call may raise for a lost connection."""

    def result(self, command: CommandId, outcome: Mapping[str, Any]) -> None: ...

    def progress(self, command: CommandId, fields: Mapping[str, Any]) -> bool: ...


class Executor:
    """See the module's docstring."""

    def __init__(
        self, folder: Path, handlers: Mapping[str, Handler], items: ItemStore, answers: Answers
    ) -> None:
        self._folder = folder
        self._handlers = handlers
        self._items = items
        self._answers = answers
        self._pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="command")
        self._lock = threading.Lock()
        self._running: set[CommandId] = set()
        self._waiting: dict[ItemId, deque[Command]] = {}
        self._unsaved: dict[CommandId, dict[str, Any]] = {}
        self._closing = False
        folder.mkdir(parents=True, exist_ok=True)

    def running(self) -> list[CommandId]:
        """Return the ids of commands that run or wait here."""
        with self._lock:
            return sorted(self._running)

    def submit(self, command: Command) -> None:
        """Run the command unless it runs already; answer at once if its result is kept."""
        with self._lock:
            if command.id in self._running:
                return
            # Asked for only now: a run leaves its result before it leaves the running ones.
            kept = self._kept(command.id)
            if kept is None:
                self._enqueue(command)
        if kept is not None:
            self._answers.result(command.id, kept)

    def stopping(self) -> None:
        """From now on, what ends by being cancelled was cut by our own stop."""
        self._closing = True

    def close(self) -> None:
        """Wait for what runs; start nothing more."""
        self.stopping()
        with self._lock:
            self._waiting = {item: deque() for item in self._waiting}
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _enqueue(self, command: Command) -> None:
        """The caller holds the lock. One worker per item takes its commands in their order."""
        if command.item is None:
            self._pool.submit(self._run, command)
        elif command.item in self._waiting:
            self._waiting[command.item].append(command)
        else:
            self._pool.submit(self._drain, command.item)
            self._waiting[command.item] = deque([command])
        self._running.add(command.id)

    def _drain(self, item: ItemId) -> None:
        while True:
            with self._lock:
                waiting = self._waiting.get(item)
                if not waiting:
                    self._waiting.pop(item, None)
                    return
                command = waiting.popleft()
            self._run(command)

    def _run(self, command: Command) -> None:
        outcome: dict[str, Any]
        try:
            outcome = {"result": dict(self._handle(command))}
        except SecondSiteError as error:
            log.warning("command failed", command=command.id, kind=command.kind, error=error.to_dict())
            outcome = {"error": error.to_dict()}
        except Exception as error:
            log.exception("command broke", command=command.id, kind=command.kind)
            outcome = {
                "error": SecondSiteError(
                    f"{command.kind} broke: {type(error).__name__}: {error}",
                    hint="this is a bug of the node: its log has the traceback",
                ).to_dict()
            }
        if self._closing and outcome.get("error", {}).get("code") in CUT_BY_STOP:
            return
        try:
            durable.write_atomic(self._path(command.id), json.dumps(outcome).encode())
            self._prune()
        except Exception:
            # A full disk, most likely. The service gets its answer, also when it asks again before a restart.
            log.exception("a result could not be kept", command=command.id)
            self._unsaved[command.id] = outcome
        finally:
            with self._lock:
                self._running.discard(command.id)
        self._answers.result(command.id, outcome)

    def _handle(self, command: Command) -> Mapping[str, Any]:
        handler = self._handlers.get(command.kind)
        if handler is None:
            raise InvalidInputError(
                f"this node does not know the command {command.kind}", hint="upgrade the node"
            )
        if command.item is None:
            return handler(command, self._progress(command))
        with self._items.lock(command.item):
            # A damaged record has no epoch to compare: handlers refuse it, but for those that remove it.
            record = None if command.item in self._items.damaged else self._items.find(command.item)
            # A role change that is repeated after a crash finds the epoch raised by its own first run.
            epoch = max(command.epoch, *(int(command.args.get(name) or 0) for name in RAISING))
            if record is not None and epoch < record.epoch and command.kind not in OF_ANY_EPOCH:
                raise StaleEpochError(
                    f"{command.kind} carries epoch {command.epoch}, but {record.name} is at {record.epoch}",
                    item=command.item,
                    epoch=command.epoch,
                    current=record.epoch,
                )
            return handler(command, self._progress(command))

    def _progress(self, command: Command) -> Progress:
        def report(
            fraction: float | None = None,
            text: str = "",
            *,
            bytes_done: int | None = None,
            bytes_total: int | None = None,
        ) -> None:
            fields = {"fraction": fraction, "text": text, "bytes": bytes_done, "total_bytes": bytes_total}
            if self._answers.progress(command.id, fields):
                raise CancelledError(f"{command.kind} was cancelled", command=command.id)

        return report

    def _path(self, command: CommandId) -> Path:
        return self._folder / f"{command}.json"

    def _kept(self, command: CommandId) -> dict[str, Any] | None:
        if command in self._unsaved:
            return self._unsaved[command]
        try:
            outcome = json.loads(self._path(command).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return outcome if isinstance(outcome, dict) else None

    def _prune(self) -> None:
        files = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-RESULTS_KEPT]:
            path.unlink(missing_ok=True)


class CancelledError(SecondSiteError):
    """The service asked to stop this."""

    code = "cancelled"
