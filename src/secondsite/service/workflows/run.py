"""One run of a job: its tasks, its commands to nodes, its transitions, its end. The workflows are written on this.

Rules that make a run durable:

- Everything that looks at the world or changes it happens in a *step*. A step's outcome (a value, or an error of ours)
  is recorded; after a crash the workflow function runs again from its top and recorded steps answer from the record.
  What a workflow decides, it decides on outcomes of steps alone.
- A step that the crash cut runs again. So each is written to be repeated: a command is put once under its id, a
  transition is made once under its event's key, the end of a job is written once.
- Being told to stop (`Interrupted`) is no outcome: nothing is recorded and the step runs again after the restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from secondsite.errors import RemoteError, SecondSiteError, UnavailableError
from secondsite.model.ids import CommandId, ItemId, JobId
from secondsite.model.item import Event, ItemState, advance, advance_test
from secondsite.service.context import Context
from secondsite.service.store import commands, events, items, jobs
from secondsite.service.store.database import Transaction, is_transient
from secondsite.service.store.records import Item, Job, Json
from secondsite.service.vocabulary import JobState, Severity, TaskState
from secondsite.service.workflows import ordering
from secondsite.service.workflows.ends import began_in, details, end_of
from secondsite.service.workflows.limits import LIMITS, Limit

log = logging.getLogger("secondsite.service")

PAUSE_MIN_S: Final = 0.05
PAUSE_MAX_S: Final = 0.5


class Interrupted(BaseException):
    """The service stops; the run goes on after the next start. Not an Exception, so that nothing records it."""


class Durable(Protocol):
    """Records outcomes of steps. DBOS in the service; a plain list in tests."""

    def step(self, name: str, action: Callable[[], Json]) -> Json:
        """Return the recorded outcome, or run `action` and record what it returns."""
        ...


@dataclass(slots=True)
class Run:
    """See the module's docstring."""

    ctx: Context
    durable: Durable
    job_id: JobId
    stopping: threading.Event
    speed: float = 1.0
    """Divides the time limits; tests are in a hurry."""
    _tasks: int = field(default=0, init=False)

    @property
    def begun_in(self) -> ItemState | None:
        """The state of the item in which the operation was accepted; it never changes, so it is no step."""
        with self.ctx.store.reading() as tx:
            return began_in(jobs.get(tx, self.job_id))

    # -- steps ---------------------------------------------------------------------------------------------

    def step(self, name: str, action: Callable[[], Any]) -> Any:
        """Run `action` once, durably, and return what it returned (a JSON value); errors of ours are raised again."""

        def recorded() -> Json:
            try:
                return {"value": self._patiently(action)}
            except SecondSiteError as error:
                return {"error": error.to_dict()}

        outcome = self.durable.step(name, recorded)
        if "error" in outcome:
            raise RemoteError(outcome["error"])
        return outcome["value"]

    def _patiently(self, action: Callable[[], Any]) -> Any:
        # A database that is away (a restart of PostgreSQL) is not the operation's failure.
        pause = PAUSE_MIN_S
        while True:
            try:
                return action()
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("the database does not answer, trying again: %s", error)
                if self.stopping.wait(pause):
                    raise Interrupted from error
                pause = min(pause * 2, 10.0)

    # -- tasks ---------------------------------------------------------------------------------------------

    def begin(self, names: Sequence[str]) -> Job:
        """Mark the job as running, show its tasks, and return it."""
        self._tasks = len(names)

        def action() -> None:
            with self.ctx.store.transaction() as tx:
                job = jobs.get(tx, self.job_id, lock=True)
                if job.state is JobState.NOT_STARTED:
                    jobs.change(tx, job.id, state=JobState.IN_PROGRESS, started=self.ctx.clock())
                for ordinal, name in enumerate(names):
                    jobs.put_task(tx, job.id, ordinal, name)

        self.step("begin", action)
        # What never changes may be read outside of a step.
        with self.ctx.store.reading() as tx:
            return jobs.get(tx, self.job_id)

    def task(self, ordinal: int, action: Callable[[], Any]) -> Any:
        """Run a step as a task of the job; its failure is the task's."""

        def tracked() -> Any:
            self._start_task(ordinal)
            try:
                value = action()
            except SecondSiteError as error:
                self._end_task(ordinal, error)
                raise
            self._end_task(ordinal, None)
            return value

        return self.step(f"task {ordinal}", tracked)

    def skip(self, first: int, last: int) -> None:
        """Show tasks that will not run any more as skipped."""

        def action() -> None:
            with self.ctx.store.transaction() as tx:
                for task in jobs.list_tasks(tx, self.job_id):
                    if first <= task.ordinal <= last and task.state is TaskState.NOT_STARTED:
                        jobs.change_task(tx, self.job_id, task.ordinal, state=TaskState.SKIPPED)

        self.step("skip", action)

    def _start_task(self, ordinal: int) -> None:
        with self.ctx.store.transaction() as tx:
            task = jobs.list_tasks(tx, self.job_id)[ordinal]
            if task.state is not TaskState.IN_PROGRESS:
                jobs.change_task(
                    tx,
                    self.job_id,
                    ordinal,
                    state=TaskState.IN_PROGRESS,
                    started=task.started or self.ctx.clock(),
                )

    def _end_task(self, ordinal: int, error: SecondSiteError | None) -> None:
        with self.ctx.store.transaction() as tx:
            jobs.change_task(
                tx,
                self.job_id,
                ordinal,
                state=TaskState.SUCCEEDED if error is None else TaskState.FAILED,
                error=None if error is None else error.to_dict(),
                ended=self.ctx.clock(),
            )
            if error is None and self._tasks:
                jobs.change(tx, self.job_id, progress=min(1.0, (ordinal + 1) / self._tasks))

    def show_progress(self, ordinal: int, progress: Json) -> None:
        """Show a task's progress; call it from within a step, and only when it changed."""
        with self.ctx.store.transaction() as tx:
            jobs.change_task(tx, self.job_id, ordinal, progress=progress)
            fraction = progress.get("fraction")
            if isinstance(fraction, int | float) and self._tasks:
                done = (ordinal + min(max(float(fraction), 0.0), 1.0)) / self._tasks
                jobs.change(tx, self.job_id, progress=min(1.0, done))

    # -- commands ------------------------------------------------------------------------------------------

    def command(
        self,
        ordinal: int,
        kind: str,
        node: str,
        item: str,
        epoch: int,
        args: Json,
        *,
        with_key: bool = False,
        attempt: int = 0,
        limit: Limit | None = None,
        unless: Callable[[Transaction], bool] | None = None,
    ) -> Json:
        """Give a node an order as a task of the job and return its result.

        `with_key` adds the item's digest key, which never enters a step's record. A node's error is raised as
        RemoteError. A limit that runs out raises an error with the attribute `undelivered` if the node did not fetch
        the order in time (and `withdrawn` if it surely never will), else one with the attribute `unanswered`: what
        the node did is unknown then. Unless its limit lets it stand, the order is ended by that and never
        delivered again. `unless` ends the wait likewise, as soon as it holds.
        """
        command_id = CommandId(f"{self.job_id}:{ordinal}:{kind}" + (f":{attempt}" if attempt else ""))
        limit = limit or LIMITS[kind]

        def tracked() -> Json:
            self._start_task(ordinal)
            try:
                ordering.put(self, command_id, kind, node, item, epoch, args, with_key)
                command = ordering.answered(self, command_id, ordinal, limit, unless)
                if command.error is not None:
                    raise RemoteError(command.error)
            except SecondSiteError as error:
                self._end_task(ordinal, error)
                raise
            self._end_task(ordinal, None)
            return command.result or {}

        result: Json = self.step(command_id.partition(":")[2], tracked)
        return result

    def wait(self, look: Callable[[float], Any]) -> Any:
        """Call `look` with the seconds waited until it returns something; call this from within a step."""
        began = time.monotonic()
        pause = PAUSE_MIN_S
        while True:
            seen = self.ctx.store.bell.count
            found = look((time.monotonic() - began) * self.speed)
            if found is not None:
                return found
            if self.stopping.is_set():
                raise Interrupted
            self.ctx.store.bell.wait(seen, pause)
            pause = min(pause * 1.5, PAUSE_MAX_S)

    # -- transitions ---------------------------------------------------------------------------------------

    def change(
        self,
        name: str,
        message: str,
        action: Callable[[Transaction, Item], Json],
        *,
        severity: Severity = Severity.INFO,
    ) -> None:
        """Change the item once, together with an event; `action` returns the columns to set."""

        def once() -> None:
            key = f"{self.job_id}:{name}"
            with self.ctx.store.transaction() as tx:
                # The lock comes first: what looks after standing orders writes the same events, under the same lock.
                item = items.get(tx, self._item_id(tx), lock=True)
                if events.written(tx, key):
                    return
                values = action(tx, item)
                items.move(
                    tx, item.id, self._event(item, name, message, once=key, severity=severity), **values
                )

        self.step(name, once)

    def finish(
        self,
        event: Event,
        message: str,
        *,
        result: Json | None = None,
        error: SecondSiteError | None = None,
        test: bool = False,
        severity: Severity | None = None,
        values: Callable[[Transaction, Item], Json] | None = None,
        move: bool = True,
    ) -> None:
        """End the job, move the item by `event` and write it, in one transaction; once."""

        def once() -> None:
            with self.ctx.store.transaction() as tx:
                job = jobs.get(tx, self.job_id, lock=True)
                if job.state.ended:
                    return
                item = items.get(tx, self._item_id(tx), lock=True)
                columns: Json = {} if values is None else dict(values(tx, item))
                if move and test:
                    columns["test_state"] = advance_test(item.test_state, event)
                elif move:
                    columns["state"] = advance(item.state, event, began_in(job))
                state, word, level = end_of(error)
                if error is not None:
                    self._give_up_open(tx)
                items.move(
                    tx,
                    item.id,
                    self._event(
                        item,
                        f"{job.operation}-{word}",
                        message,
                        severity=severity or level,
                        details=details(result, error),
                    ),
                    **columns,
                )
                jobs.change(
                    tx,
                    job.id,
                    state=state,
                    progress=1.0 if error is None else job.progress,
                    ended=self.ctx.clock(),
                    error=None if error is None else error.to_dict(),
                    result=(result or {}) | {"task_seconds": self._task_seconds(tx)},
                )

        self.step("finish", once)

    def _give_up_open(self, tx: Transaction) -> None:
        """A job that failed leaves no order behind, but for those that stand until they are done."""
        error = UnavailableError("the job ended before it was answered").to_dict()
        left = [
            command
            for command in commands.open_of_job(tx, self.job_id)
            if LIMITS.get(command.kind, Limit()).withdraw
        ]
        commands.give_up_all(tx, left, error, self.ctx.clock())

    def _task_seconds(self, tx: Transaction) -> Json:
        return {
            task.name: round((task.ended - task.started).total_seconds(), 3)
            for task in jobs.list_tasks(tx, self.job_id)
            if task.started is not None and task.ended is not None
        }

    def _item_id(self, tx: Transaction) -> ItemId:
        item_id = jobs.get(tx, self.job_id).item_id
        assert item_id is not None
        return item_id

    def _event(
        self,
        item: Item,
        code: str,
        message: str,
        *,
        once: str | None = None,
        severity: Severity = Severity.INFO,
        details: Json | None = None,
    ) -> events.NewEvent:
        return events.NewEvent(
            time=self.ctx.clock(),
            code=code,
            message=f"{item.name}: {message}",
            severity=severity,
            item_id=item.id,
            job_id=self.job_id,
            details=details or {},
            once=once,
        )
