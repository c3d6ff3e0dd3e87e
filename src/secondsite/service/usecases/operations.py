"""Operations on protected items: accepted or refused in one transaction that also makes the job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from secondsite.errors import InvalidInputError, NotFoundError, OperationRefusedError
from secondsite.model.ids import JobId
from secondsite.model.item import ItemState, Operation, begin
from secondsite.model.manifest import PointKind
from secondsite.service.context import Actor, Context
from secondsite.service.store import clouds, events, items, jobs, points
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Job, Point
from secondsite.service.usecases import standing
from secondsite.service.vocabulary import ENABLE, TEST_OPERATIONS, JobState, Severity


class TestNetwork(StrEnum):
    """Where a test machine's interfaces are connected."""

    __test__ = False  # pytest must not collect it

    MAPPED = "mapped"  # to the test networks of the network mappings; without one: disconnected
    NONE = "none"  # nowhere


class PointChoice(StrEnum):
    """Which point, where none is named."""

    LATEST = "latest"
    LATEST_APP_CONSISTENT = "latest-app-consistent"


class ShutdownSource(StrEnum):
    """Whether an unplanned failover asks the source for its last changes."""

    TRY = "try"  # shut down and ship, bounded; if that fails: told, and on with what the target has
    NO = "no"  # the power is cut, if the node is alive


@dataclass(frozen=True, slots=True)
class Options:
    """What an operation may be told. Each looks at its own and ignores the others.

    sequence: the point of a test failover, an unplanned failover or a change of the point; None for the latest.
    point: which one, where `sequence` is None.
    network: of a test failover.
    shutdown_source: of an unplanned failover.
    shutdown_timeout_s: of a planned or unplanned failover; None for the policy's.
    start: of cancel: start the machine at the source also if it did not run there before.
    delete_replica: of disable: also delete disks of the side that does not run (an old machine's, or a base made
        of them); None for what the policy says. The journal goes in any case.
    force: of disable: go on without nodes that do not answer.
    """

    sequence: int | None = None
    point: PointChoice = PointChoice.LATEST
    network: TestNetwork = TestNetwork.MAPPED
    shutdown_source: ShutdownSource = ShutdownSource.TRY
    shutdown_timeout_s: int | None = None
    start: bool = False
    delete_replica: bool | None = None
    force: bool = False


def start_operation(
    ctx: Context, actor: Actor, item_ref: str, operation: Operation, options: Options | None = None
) -> Job:
    """Begin an operation and return its job.

    Raises:
        OperationRefusedError: the item's state does not allow it; the hint says what to do instead.
    """
    with ctx.store.transaction() as tx:
        job = accept(ctx, tx, actor, item_ref, operation, options)
    ctx.start_job(job.id)
    return job


def accept(
    ctx: Context,
    tx: Transaction,
    actor: Actor,
    item_ref: str,
    operation: Operation,
    options: Options | None = None,
    *,
    retry_of: JobId | None = None,
) -> Job:
    """Accept an operation within a transaction; whoever commits it calls `ctx.start_job` then.

    Raises:
        OperationRefusedError: the item's state does not allow it; the hint says what to do instead.
    """
    item = items.get(tx, item_ref, lock=True)
    state, test_state = begin(item.state, item.test_state, operation)
    parameters = _parameters(tx, item, operation, options or Options()) | {"from_state": item.state.value}
    if retry_of is not None:
        parameters["retry_of"] = retry_of
    _make_room(tx, ctx, actor, item, operation)
    job = Job(
        id=JobId(ctx.new_id()),
        operation=operation.value,
        item_id=item.id,
        item_name=item.name,
        state=JobState.NOT_STARTED,
        progress=0.0,
        requested_by=actor.name,
        parameters=parameters,
        created=ctx.clock(),
        started=None,
        ended=None,
        error=None,
        result=None,
    )
    jobs.add(tx, job)
    items.move(
        tx,
        item.id,
        events.NewEvent(
            job.created,
            operation.value,
            f"{actor.name} asked for {operation.value} of {item.name}",
            item_id=item.id,
            job_id=job.id,
            details=parameters,
        ),
        state=state,
        test_state=test_state,
    )
    return job


def resume_job(ctx: Context, actor: Actor, job_id: str, confirm: str) -> Job:
    """Let a suspended job go on: the caller vouches for what the job cannot find out, in the job's own words.

    Raises:
        OperationRefusedError: the job does not ask anything now.
        InvalidInputError: this is not the sentence that it asks for.
    """
    with ctx.store.transaction() as tx:
        job = jobs.get(tx, job_id, lock=True)
        sentence = (job.result or {}).get("confirm")
        if job.state is not JobState.SUSPENDED or not sentence:
            raise OperationRefusedError(
                f"the job is {job.state.value} and waits for nobody",
                hint="only a suspended job can be resumed",
            )
        if " ".join(confirm.split()) != sentence:
            raise InvalidInputError(
                "this is not what the job asks to be confirmed",
                hint=f"look yourself first; if it is true, send exactly: {sentence}",
            )
        now = ctx.clock()
        confirmed = {"by": actor.name, "time": now.isoformat(), "text": sentence}
        jobs.change(
            tx,
            job.id,
            state=JobState.IN_PROGRESS,
            result=None,
            parameters={**job.parameters, "confirmed": confirmed},
        )
        events.add(
            tx,
            events.NewEvent(
                now,
                "operator-confirmed",
                f"{job.item_name}: {actor.name} confirmed: {sentence}",
                Severity.WARNING,
                item_id=job.item_id,
                job_id=job.id,
                details=confirmed,
            ),
        )
        return jobs.get(tx, job.id)


def drop_diverged(ctx: Context, actor: Actor, item_ref: str) -> Point:
    """Give up what a reversal kept of the old side's disks; returns that point. The order stands until it is done.

    Raises:
        NotFoundError: nothing was kept.
    """
    with ctx.store.transaction() as tx:
        item = items.get(tx, item_ref, lock=True)
        kept = points.latest(tx, item.id, PointKind.DIVERGED.value)
        if kept is None:
            raise NotFoundError(
                f"{item.name} has no point that a reversal kept",
                hint="list its points: secondsite point list",
            )
        told = standing.order(
            "target.drop_diverged",
            item.journal_node_id,
            item.epoch,
            {},
            f"{ctx.new_id()}:drop-diverged",
            given=False,
        )
        items.move(
            tx,
            item.id,
            events.NewEvent(
                ctx.clock(),
                "drop-diverged",
                f"{item.name}: {actor.name} gave up point {kept.sequence}, which a reversal had kept",
                Severity.WARNING,
                item_id=item.id,
            ),
            standing=standing.with_order(item.standing, told),
        )
        standing.follow(tx, items.get(tx, item.id), ctx.clock())
        return kept


def _parameters(tx: Transaction, item: Item, operation: Operation, options: Options) -> dict[str, Any]:
    if operation is Operation.TEST_FAILOVER:
        if options.sequence is not None:
            points.get(tx, item.id, options.sequence)
        return {"sequence": options.sequence, "network": options.network.value}
    if operation is Operation.PLANNED_FAILOVER:
        return {"shutdown_timeout_s": _shutdown_timeout(options)}
    if operation is Operation.UNPLANNED_FAILOVER:
        _point_exists(tx, item, options)
        return {
            "sequence": options.sequence,
            "point": options.point.value,
            "shutdown_source": options.shutdown_source.value,
            "shutdown_timeout_s": _shutdown_timeout(options),
        }
    if operation is Operation.CHANGE_POINT:
        _point_exists(tx, item, options)
        _another_point(tx, item, options)
        return {"sequence": options.sequence, "point": options.point.value}
    if operation is Operation.CANCEL:
        return {"start": options.start}
    if operation is Operation.DISABLE:
        return {"delete_replica": _delete_replica(tx, item, options), "force": options.force}
    return {}


def app_consistent_point(tx: Transaction, item_id: str, name: str) -> Point:
    """Return the newest application-consistent point; OperationRefusedError if there is none."""
    found = points.latest_app_consistent(tx, item_id)
    if found is None:
        raise OperationRefusedError(
            f"{name} has no application-consistent recovery point",
            hint="choose another one (secondsite point list); the policy says how often one is made",
        )
    return found


def _delete_replica(tx: Transaction, item: Item, options: Options) -> bool:
    if options.delete_replica is not None:
        return options.delete_replica
    mapping = clouds.mapping(tx, item.cloud_mapping_id)
    return clouds.policy(tx, mapping.policy_id).policy.delete_replica_on_disable


def _shutdown_timeout(options: Options) -> int | None:
    timeout = options.shutdown_timeout_s
    if timeout is not None and not 1 <= timeout <= 3600:
        raise InvalidInputError("shutdown_timeout_s is out of range", hint="choose 1 to 3600 s")
    return timeout


def _point_exists(tx: Transaction, item: Item, options: Options) -> None:
    if options.sequence is not None:
        if options.point is not PointChoice.LATEST:
            raise InvalidInputError("both a sequence and a point are named", hint="choose one of them")
        points.get(tx, item.id, options.sequence)
    elif options.point is PointChoice.LATEST_APP_CONSISTENT and not _may_be_shut_down(item, options):
        app_consistent_point(tx, item.id, item.name)
    elif item.last_sequence is None:
        raise OperationRefusedError(
            f"{item.name} has no recovery point", hint="wait for the next cycle to seal one"
        )


def _may_be_shut_down(item: Item, options: Options) -> bool:
    """Whether the last changes may come from a guest that was shut down, which is application-consistent, too."""
    states = {ItemState.PROTECTED, ItemState.PAUSED}
    return item.state in states and options.shutdown_source is ShutdownSource.TRY


def _another_point(tx: Transaction, item: Item, options: Options) -> None:
    if item.state is not ItemState.UNPLANNED_COMMIT_PENDING:
        return
    wanted = options.sequence
    if wanted is None:
        newest = (
            points.listed(tx, item.id, 1)
            if options.point is PointChoice.LATEST
            else [app_consistent_point(tx, item.id, item.name)]
        )
        wanted = newest[0].sequence if newest else None
    if item.failover is not None and wanted == item.failover["sequence"]:
        raise OperationRefusedError(
            f"{item.name} runs from point {wanted} already",
            hint="choose another point: secondsite point list",
        )


def _make_room(tx: Transaction, ctx: Context, actor: Actor, item: Item, operation: Operation) -> None:
    """Refuse while another job changes the item; a disable ends an initial replication that is under way."""
    if operation.value in TEST_OPERATIONS:
        return
    running = jobs.active_change(tx, item.id)
    if running is None:
        return
    replicating = item.state is ItemState.INITIAL_REPLICATING and running.operation == ENABLE
    if operation is Operation.DISABLE and replicating:
        jobs.change(
            tx,
            running.id,
            state=JobState.CANCELLED,
            ended=ctx.clock(),
            result={"information": f"{actor.name} disabled the item"},
        )
        return
    raise OperationRefusedError(
        f"{operation.value} is refused: the job {running.operation} of this item has not ended",
        hint=f"wait for it: secondsite job show {running.id}",
        job=running.id,
    )
