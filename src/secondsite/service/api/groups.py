"""Consistency groups: who is in one, the points that all members share, and operations on all members at once."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from secondsite.model.item import Operation
from secondsite.service.api.answers import JobView
from secondsite.service.api.guard import Contributor, Ctx, Operator, Reader
from secondsite.service.api.requests import Body, Name
from secondsite.service.context import Actor, Context
from secondsite.service.usecases import group_views, groups, operations, views

router = APIRouter(prefix="/groups", tags=["groups"])


class GroupBody(Body):
    """A new group."""

    name: Name = Field(examples=["shop"])
    items: list[str] = Field(description="names or ids, at least two", examples=[["shop-db", "shop-web"]])


class GroupChange(Body):
    """Who comes in and who goes out."""

    add: list[str] = Field(default_factory=list, examples=[["shop-cache"]])
    remove: list[str] = Field(default_factory=list, examples=[["shop-web"]])


class GroupPointBody(Body):
    """The common point to start from."""

    number: int | None = Field(
        default=None, ge=1, description="of the common point; none: the latest that all members have"
    )


class GroupTestBody(GroupPointBody):
    """Options of a test failover of a group."""

    network: operations.TestNetwork = Field(default=operations.TestNetwork.MAPPED, examples=["mapped"])


class GroupFailoverBody(GroupPointBody):
    """Options of an unplanned failover of a group."""

    shutdown_source: operations.ShutdownSource = Field(
        default=operations.ShutdownSource.TRY, description="try: shut the guests down; no: cut their power"
    )
    shutdown_timeout_s: int | None = Field(default=None, ge=1, le=3600, description="none: the policy's")


class GroupCancelBody(Body):
    """Options of cancel."""

    start: bool = Field(default=False, description="also start machines that did not run before")


class GroupMemberView(BaseModel):
    """An item of a group."""

    id: str
    name: str
    state: str
    test_state: str
    source_node: str
    target_node: str


class GroupPointView(BaseModel):
    """A point that all members share. `sequences`: each member's own point, by its name."""

    number: int
    time: datetime
    consistency: str
    sequences: dict[str, int]


class GroupView(BaseModel):
    """A group. `cuts`: what its source node said last; `rpo_s`: the age of the newest common point."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "shop", "together": True}]})

    id: str
    name: str
    created: datetime
    members: list[GroupMemberView]
    together: bool = Field(description="whether all members replicate from one node, so that there are cuts")
    source_node: str | None
    latest_point: GroupPointView | None
    rpo_s: float | None
    cuts: dict[str, Any] | None
    allowed_operations: dict[str, Any]


class GroupJobsView(BaseModel):
    """An operation that was begun for all members."""

    group: str
    operation: str
    point: GroupPointView | None
    jobs: list[JobView]


@router.get("", response_model=list[GroupView])
def list_groups(ctx: Ctx, _: Reader) -> Any:
    """All groups."""
    return group_views.group_views(ctx)


@router.post("", response_model=GroupView, status_code=201)
def create_group(ctx: Ctx, _: Contributor, body: GroupBody) -> Any:
    """Let items share points. They replicate from one node to one node."""
    return group_views.group_view(ctx, groups.create(ctx, body.name, body.items).id)


@router.get("/{group}", response_model=GroupView)
def show_group(ctx: Ctx, _: Reader, group: str) -> Any:
    """One group, with what is allowed now."""
    return group_views.group_view(ctx, group)


@router.patch("/{group}", response_model=GroupView)
def change_group(ctx: Ctx, _: Contributor, group: str, body: GroupChange) -> Any:
    """Put items in and take items out; replication goes on."""
    return group_views.group_view(ctx, groups.change(ctx, group, body.add, body.remove).id)


@router.delete("/{group}", status_code=204)
def delete_group(ctx: Ctx, _: Contributor, group: str) -> Response:
    """End a group; its members' points stay."""
    groups.delete(ctx, group)
    return Response(status_code=204)


@router.get("/{group}/points", response_model=list[GroupPointView])
def list_group_points(
    ctx: Ctx, _: Reader, group: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Any:
    """The points that all members share, newest first."""
    return group_views.point_views(ctx, group, limit)


@router.post("/{group}/test-failover", response_model=GroupJobsView, status_code=202)
def test_group_failover(ctx: Ctx, actor: Operator, group: str, body: GroupTestBody | None = None) -> Any:
    """Start a copy of every member from one common point, beside replication."""
    chosen = body or GroupTestBody()
    options = operations.Options(network=chosen.network)
    return _start(ctx, actor, group, Operation.TEST_FAILOVER, options, chosen.number)


@router.post("/{group}/cleanup-test", response_model=GroupJobsView, status_code=202)
def clean_up_group_test(ctx: Ctx, actor: Operator, group: str) -> Any:
    """Remove the copies that a test failover started."""
    return _start(ctx, actor, group, Operation.CLEANUP_TEST)


@router.post("/{group}/unplanned-failover", response_model=GroupJobsView, status_code=202)
def fail_group_over(ctx: Ctx, actor: Operator, group: str, body: GroupFailoverBody | None = None) -> Any:
    """Run every member on the other side, all from one common point."""
    chosen = body or GroupFailoverBody()
    options = operations.Options(
        shutdown_source=chosen.shutdown_source, shutdown_timeout_s=chosen.shutdown_timeout_s
    )
    return _start(ctx, actor, group, Operation.UNPLANNED_FAILOVER, options, chosen.number)


@router.post("/{group}/change-point", response_model=GroupJobsView, status_code=202)
def change_group_point(ctx: Ctx, actor: Operator, group: str, body: GroupPointBody | None = None) -> Any:
    """Run every member from another common point; what was written since the failover is discarded."""
    return _start(ctx, actor, group, Operation.CHANGE_POINT, number=(body or GroupPointBody()).number)


@router.post("/{group}/commit", response_model=GroupJobsView, status_code=202)
def commit_group(ctx: Ctx, actor: Operator, group: str) -> Any:
    """Keep the failed-over state of every member and give up all points."""
    return _start(ctx, actor, group, Operation.COMMIT)


@router.post("/{group}/cancel", response_model=GroupJobsView, status_code=202)
def cancel_group_failover(ctx: Ctx, actor: Operator, group: str, body: GroupCancelBody | None = None) -> Any:
    """Discard the failover of every member; the old side goes on."""
    options = operations.Options(start=(body or GroupCancelBody()).start)
    return _start(ctx, actor, group, Operation.CANCEL, options)


def _start(
    ctx: Context,
    actor: Actor,
    group: str,
    operation: Operation,
    options: operations.Options | None = None,
    number: int | None = None,
) -> Any:
    begun = groups.start(ctx, actor, group, operation, options or operations.Options(), number)
    jobs = [views.job_view(ctx, job.id) for job in begun.jobs]
    point = None
    if begun.point is not None:
        names = {job.item_id: str(job.item_name) for job in begun.jobs if job.item_id is not None}
        point = {
            "number": begun.point.number,
            "time": begun.point.time,
            "consistency": begun.point.consistency.value,
            "sequences": {names[item]: sequence for item, sequence in begun.point.sequences.items()},
        }
    return {"group": begun.group.name, "operation": operation.value, "point": point, "jobs": jobs}
