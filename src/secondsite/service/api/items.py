"""Protectable and protected items, their points, and the operations on them. Items are named by id or by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from secondsite.model.item import Operation
from secondsite.service.api.answers import ItemView, JobView, PointView, ProtectableView
from secondsite.service.api.guard import Contributor, Ctx, Operator, Reader
from secondsite.service.api.requests import (
    CancelBody,
    ChangePointBody,
    DisableBody,
    PlannedFailoverBody,
    ProtectBody,
    TestFailoverBody,
    UnplannedFailoverBody,
)
from secondsite.service.context import Actor, Context
from secondsite.service.usecases import operations, protect, views

router = APIRouter(tags=["items"])


@router.get("/protectable-items", response_model=list[ProtectableView])
def list_protectable(ctx: Ctx, _: Reader, cloud: Annotated[str | None, Query()] = None) -> Any:
    """Machines that could be protected, with what stands in the way."""
    return [
        {
            "vm": machine.vm,
            "name": machine.name,
            "power": machine.power,
            "node": machine.node.name,
            "cloud": machine.cloud.name,
            "mapped": machine.mapping is not None,
            "ready": machine.ready,
            "disks": machine.disks,
            "networks": machine.networks,
            "problems": [asdict(problem) for problem in machine.problems],
        }
        for machine in protect.protectable(ctx, cloud)
    ]


@router.post("/items", response_model=JobView, status_code=202)
def protect_machine(ctx: Ctx, actor: Contributor, body: ProtectBody) -> Any:
    """Begin to protect a machine; the answer is the job."""
    job = protect.protect(
        ctx,
        actor,
        body.vm,
        cloud=body.cloud,
        name=body.name,
        exclude_disks=body.exclude_disks,
        start_at=body.start_at,
        seed=body.seed,
    )
    return views.job_view(ctx, job.id)


@router.get("/items", response_model=list[ItemView])
def list_items(
    ctx: Ctx,
    _: Reader,
    disabled: Annotated[bool, Query()] = False,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
) -> Any:
    """Protected items by name; `disabled`: also those whose protection was ended.

    In pages: `limit` items that come after `after`, the id of the last one of the page before. Without a limit all of them come at
    once, which for a thousand takes a second.
    """
    return views.item_views(ctx, deleted=disabled, after=after, limit=limit)


@router.get("/items/{item}", response_model=ItemView)
def show_item(ctx: Ctx, _: Reader, item: str) -> Any:
    """One item, with its health and what is allowed now."""
    return views.item_view(ctx, item)


@router.get("/items/{item}/points", response_model=list[PointView])
def list_points(ctx: Ctx, _: Reader, item: str, limit: Annotated[int, Query(ge=1, le=10000)] = 1000) -> Any:
    """Its recovery points, newest first."""
    return views.point_views(ctx, item, limit)


@router.delete("/items/{item}/points/diverged", response_model=PointView, status_code=202)
def drop_diverged(ctx: Ctx, actor: Operator, item: str) -> Any:
    """Give up what a reversal kept of the old side's disks; the answer is that point. It goes when the node has done it."""
    return views.point_view(operations.drop_diverged(ctx, actor, item))


@router.post("/items/{item}/test-failover", response_model=JobView, status_code=202)
def start_test_failover(ctx: Ctx, actor: Operator, item: str, body: TestFailoverBody | None = None) -> Any:
    """Start a copy of the machine from a point, beside replication."""
    chosen = body or TestFailoverBody()
    return _start(
        ctx,
        actor,
        item,
        Operation.TEST_FAILOVER,
        operations.Options(sequence=chosen.sequence, network=chosen.network),
    )


@router.post("/items/{item}/cleanup-test", response_model=JobView, status_code=202)
def clean_up_test(ctx: Ctx, actor: Operator, item: str) -> Any:
    """Remove the copy that a test failover started."""
    return _start(ctx, actor, item, Operation.CLEANUP_TEST)


@router.post("/items/{item}/planned-failover", response_model=JobView, status_code=202)
def planned_failover(ctx: Ctx, actor: Operator, item: str, body: PlannedFailoverBody | None = None) -> Any:
    """Shut the machine down, ship its last changes and start it on the other side. Of a reversed item: failback."""
    chosen = body or PlannedFailoverBody()
    return _start(
        ctx,
        actor,
        item,
        Operation.PLANNED_FAILOVER,
        operations.Options(shutdown_timeout_s=chosen.shutdown_timeout_s),
    )


@router.post("/items/{item}/unplanned-failover", response_model=JobView, status_code=202)
def unplanned_failover(
    ctx: Ctx, actor: Operator, item: str, body: UnplannedFailoverBody | None = None
) -> Any:
    """Start the machine on the other side from the last point or an older one; nothing is needed of its own site."""
    chosen = body or UnplannedFailoverBody()
    return _start(
        ctx,
        actor,
        item,
        Operation.UNPLANNED_FAILOVER,
        operations.Options(
            sequence=chosen.sequence,
            point=chosen.point,
            shutdown_source=chosen.shutdown_source,
            shutdown_timeout_s=chosen.shutdown_timeout_s,
        ),
    )


@router.post("/items/{item}/change-point", response_model=JobView, status_code=202)
def change_point(ctx: Ctx, actor: Operator, item: str, body: ChangePointBody | None = None) -> Any:
    """Discard what runs after an unplanned failover and start another point; as often as wanted before commit."""
    chosen = body or ChangePointBody()
    return _start(
        ctx,
        actor,
        item,
        Operation.CHANGE_POINT,
        operations.Options(sequence=chosen.sequence, point=chosen.point),
    )


@router.post("/items/{item}/cancel", response_model=JobView, status_code=202)
def cancel(ctx: Ctx, actor: Operator, item: str, body: CancelBody | None = None) -> Any:
    """Give a failover up before commit: what ran there is discarded, the machine goes on at its old place."""
    chosen = body or CancelBody()
    return _start(ctx, actor, item, Operation.CANCEL, operations.Options(start=chosen.start))


@router.post("/items/{item}/pause", response_model=JobView, status_code=202)
def pause(ctx: Ctx, actor: Operator, item: str) -> Any:
    """Make no recovery points until resume; changes are tracked on."""
    return _start(ctx, actor, item, Operation.PAUSE)


@router.post("/items/{item}/resume", response_model=JobView, status_code=202)
def resume(ctx: Ctx, actor: Operator, item: str) -> Any:
    """Go on after a pause, with what changed meanwhile."""
    return _start(ctx, actor, item, Operation.RESUME)


@router.post("/items/{item}/resync", response_model=JobView, status_code=202)
def resync(ctx: Ctx, actor: Operator, item: str) -> Any:
    """Compare whole disks in the next cycle and ship what differs; older points stay valid."""
    return _start(ctx, actor, item, Operation.RESYNC)


@router.post("/items/{item}/commit", response_model=JobView, status_code=202)
def commit(ctx: Ctx, actor: Operator, item: str) -> Any:
    """Keep the failed-over state and give up all points."""
    return _start(ctx, actor, item, Operation.COMMIT)


@router.post("/items/{item}/reverse", response_model=JobView, status_code=202)
def reverse(ctx: Ctx, actor: Operator, item: str) -> Any:
    """Replicate in the other direction."""
    return _start(ctx, actor, item, Operation.REVERSE)


@router.post("/items/{item}/disable", response_model=JobView, status_code=202)
def disable(ctx: Ctx, actor: Contributor, item: str, body: DisableBody | None = None) -> Any:
    """End the protection and remove what is ours from both sides."""
    chosen = body or DisableBody()
    return _start(
        ctx,
        actor,
        item,
        Operation.DISABLE,
        operations.Options(delete_replica=chosen.delete_replica, force=chosen.force),
    )


def _start(
    ctx: Context,
    actor: Actor,
    item: str,
    operation: Operation,
    options: operations.Options | None = None,
) -> Any:
    job = operations.start_operation(ctx, actor, item, operation, options)
    return views.job_view(ctx, job.id)
