"""Runs the workflows on DBOS, so that they survive the process.

Promises:

- A job's workflow is started at most once under the job's id; a job whose workflow never started (the process died in
  between) is started by the next `start`.
- After a restart, unfinished workflows go on where they were: the executor's id and the application's version are
  pinned, without which DBOS would leave them alone.
- No network use, no pickles: the records are JSON, in a SQLite file of its own or a schema of its own in the
  service's PostgreSQL.

DBOS is one per process: a second engine in the same process must wait until the first was closed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from secondsite.errors import SecondSiteError
from secondsite.model.ids import JobId
from secondsite.model.item import EVENTS, TEST_EVENTS, Event, Operation
from secondsite.service.context import Context
from secondsite.service.store import items, jobs
from secondsite.service.store.database import PROBES
from secondsite.service.store.records import Json
from secondsite.service.vocabulary import ENABLE, TEST_OPERATIONS
from secondsite.service.workflows.cancel import cancel
from secondsite.service.workflows.change_point import change_point
from secondsite.service.workflows.disable import disable
from secondsite.service.workflows.enable import enable
from secondsite.service.workflows.failover import planned_failover
from secondsite.service.workflows.orphans import Orphans
from secondsite.service.workflows.pausing import pause, resume, resync
from secondsite.service.workflows.run import Interrupted, Run
from secondsite.service.workflows.settle import commit, reverse
from secondsite.service.workflows.trial import cleanup_test, test_failover
from secondsite.service.workflows.unplanned import unplanned_failover

log = logging.getLogger("secondsite.service")

EXECUTOR: Final = "secondsite"
VERSION: Final = "1"
"""Of the workflows' shape. Raise it only together with a way to end what began under the old one."""
SCHEMA: Final = "secondsite_workflows"
LET_GO_S: Final = 10.0
PRUNED_AT_ONCE: Final = 100

WORKFLOWS: Final[Mapping[str, Callable[[Run], None]]] = {
    ENABLE: enable,
    Operation.TEST_FAILOVER.value: test_failover,
    Operation.CLEANUP_TEST.value: cleanup_test,
    Operation.PLANNED_FAILOVER.value: planned_failover,
    Operation.UNPLANNED_FAILOVER.value: unplanned_failover,
    Operation.CHANGE_POINT.value: change_point,
    Operation.CANCEL.value: cancel,
    Operation.COMMIT.value: commit,
    Operation.REVERSE.value: reverse,
    Operation.PAUSE.value: pause,
    Operation.RESUME.value: resume,
    Operation.RESYNC.value: resync,
    Operation.DISABLE.value: disable,
}


class DbosSteps:
    """Records steps in the DBOS workflow that the calling thread runs."""

    def step(self, name: str, action: Callable[[], Json]) -> Json:
        """See `Durable`."""
        outcome: Json = DBOS.run_step({"name": name}, action)
        return outcome


class Engine:
    """See the module's docstring."""

    def __init__(self, database: sa.URL, *, speed: float = 1.0) -> None:
        self._database = database
        self._speed = speed
        self._stopping = threading.Event()
        self._ctx: Context | None = None
        self._functions: dict[str, Callable[[str], None]] = {}
        self._running: list[JobId] = []
        self._idle = threading.Condition()
        self._orphans = Orphans(self)

    def start(self, ctx: Context) -> None:
        """Begin: unfinished workflows go on, jobs that never started begin."""
        self._ctx = ctx
        self._quiet()
        for operation, workflow in WORKFLOWS.items():
            self._functions[operation] = self._register(operation, workflow)
        DBOS(config=self._config())
        DBOS.launch()
        with ctx.store.reading() as tx:
            waiting = jobs.unfinished(tx)
        for job in waiting:
            if DBOS.get_workflow_status(job.id) is None:
                self.submit(job.id)
        self._orphans.start()

    def unfinished(self) -> set[JobId]:
        """Jobs that have not ended."""
        assert self._ctx is not None
        with self._ctx.store.reading() as tx:
            return {job.id for job in jobs.unfinished(tx)}

    def here(self) -> set[JobId]:
        """Jobs whose workflow runs in this process."""
        with self._idle:
            return set(self._running)

    def adopt(self, job_id: JobId) -> None:
        """Let the workflow of a job run in this process, whoever is recorded as running it."""
        status = DBOS.get_workflow_status(job_id)
        if status is None:
            self.submit(job_id)
        elif status.status == "PENDING":
            DBOS.resume_workflow(job_id)

    def submit(self, job_id: JobId) -> None:
        """Start the workflow of a job; does nothing if it was started before."""
        assert self._ctx is not None, "the engine was not started"
        with self._ctx.store.reading() as tx:
            operation = jobs.get(tx, job_id).operation
        with SetWorkflowID(job_id):
            DBOS.start_workflow(self._functions[operation], job_id)

    def prune(self, before: datetime) -> int:
        """Remove the records of workflows that ended before, a bounded number; returns how many it were.

        Never those of a job that has not ended: without its record the workflow would begin again.
        """
        assert self._ctx is not None
        ended = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=before.isoformat(),
            limit=PRUNED_AT_ONCE,
            load_input=False,
            load_output=False,
        )
        with self._ctx.store.reading() as tx:
            active = {str(job.id) for job in jobs.unfinished(tx)}
        gone = [workflow.workflow_id for workflow in ended if workflow.workflow_id not in active]
        if gone:
            DBOS.delete_workflows(gone)
        return len(gone)

    def interrupt(self) -> None:
        """Let every workflow stop at its next step, recording nothing; `close` has still to be called."""
        self._stopping.set()
        self._orphans.stop()
        if self._ctx is not None:
            self._ctx.store.bell.ring()

    def close(self) -> None:
        """Interrupt what runs, wait until it has let go, and end; it goes on after the next start."""
        self.interrupt()
        self._orphans.join()
        with self._idle:
            if not self._idle.wait_for(lambda: not self._running, LET_GO_S):
                log.warning(
                    "%d workflows did not let go; they go on after the next start", len(self._running)
                )
        DBOS.destroy(destroy_registry=True)

    def _register(self, operation: str, workflow: Callable[[Run], None]) -> Callable[[str], None]:
        def run_job(job_id: str) -> None:
            assert self._ctx is not None
            run = Run(self._ctx, DbosSteps(), JobId(job_id), self._stopping, self._speed)
            with self._counted(run.job_id):
                try:
                    workflow(run)
                except Exception as error:
                    if self._stopping.is_set():
                        raise Interrupted from error
                    # A bug. The job must not look as if it ran.
                    log.exception("the workflow of job %s broke", job_id)
                    break_off(run, operation, error)

        run_job.__qualname__ = run_job.__name__ = operation
        return DBOS.workflow(name=operation, max_recovery_attempts=None)(run_job)

    @contextmanager
    def _counted(self, job_id: JobId) -> Iterator[None]:
        with self._idle:
            self._running.append(job_id)
        try:
            yield
        finally:
            with self._idle:
                self._running.remove(job_id)
                self._idle.notify_all()

    def _config(self) -> DBOSConfig:
        config: DBOSConfig = {
            "name": "secondsite",
            "system_database_url": self._database.render_as_string(hide_password=False),
            "dbos_system_schema": SCHEMA,
            "application_version": VERSION,
            "executor_id": EXECUTOR,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
            "enable_otlp": False,
        }
        return config

    def _quiet(self) -> None:
        logging.getLogger("dbos").setLevel(logging.WARNING)


def engine_url(data_dir: Path, database: sa.URL) -> sa.URL:
    """Return where the workflows' records are kept, given the store's database."""
    if database.get_backend_name() == "postgresql":
        probed = {name: str(value) for name, value in PROBES.items() if name not in database.query}
        return database.set(drivername="postgresql+psycopg").update_query_dict(probed)
    return sa.make_url(f"sqlite:///{data_dir / 'workflows.sqlite'}")


def break_off(run: Run, operation: str, error: Exception) -> None:
    """End a job whose workflow broke by a bug, so that it does not look as if it ran."""
    failure = SecondSiteError(
        f"the workflow broke: {type(error).__name__}: {error}",
        hint="this is a bug of the service: its log has the traceback",
    )
    shown = {ENABLE, Operation.CHANGE_POINT.value, Operation.CANCEL.value}
    values: Any = (lambda _tx, _item: {"error": failure.to_dict()}) if operation in shown else None
    with run.ctx.store.reading() as tx:
        job = jobs.get(tx, run.job_id)
        assert job.item_id is not None
        item = items.get(tx, job.item_id)
    test = operation in TEST_OPERATIONS
    # Past the takeover a failover can't fail any more: the item stays where it is.
    move = (item.test_state, Event.FAILED) in TEST_EVENTS if test else (item.state, Event.FAILED) in EVENTS
    run.finish(
        Event.FAILED,
        failure.message,
        error=failure,
        test=test,
        values=values,
        move=move,
    )
