"""The shapes of answers, with examples: the other half of what the OpenAPI document is made of."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from secondsite.service.vocabulary import Role

UUID_EXAMPLE = "0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f"


class Health(BaseModel):
    """That the service runs and reaches its database."""

    status: str = Field(examples=["ok"])


class Empty(BaseModel):
    """Nothing to say."""


class Whoami(BaseModel):
    """Who the token speaks for."""

    name: str
    role: Role


class VaultView(BaseModel):
    """The deployment and a summary of its health."""

    name: str
    created: datetime
    ca_fingerprint: str
    items: dict[str, Any]
    nodes: dict[str, int]
    jobs_active: int


class SiteView(BaseModel):
    """A site."""

    id: str
    name: str
    created: datetime


class RegistrationKeyView(BaseModel):
    """A registration key. `key` is there once, in the answer that creates it."""

    id: str
    site: str
    created: datetime
    expires: datetime
    uses: int
    uses_max: int | None
    key: str | None = None


class NodeView(BaseModel):
    """A node. `seen_s`: seconds since its last call."""

    id: str
    name: str
    site: str
    roles: list[str]
    data_address: str
    storage: Any
    version: str
    enrolled: datetime
    last_seen: datetime | None
    seen_s: float | None
    alive: bool
    revoked: bool
    host: dict[str, Any] | None
    vms: int
    items: int
    inventory_time: datetime | None
    kerberos: dict[str, Any] | None = Field(
        description="principal, and while it takes tickets its service and address; else the error"
    )


class CloudView(BaseModel):
    """A cloud with its nodes."""

    id: str
    name: str
    site: str
    nodes: list[str]
    storage: str | None
    created: datetime


class CloudMappingView(BaseModel):
    """A cloud mapping, by names."""

    id: str
    source: str
    target: str
    policy: str
    created: datetime


class BandwidthWindowView(BaseModel):
    """A limit that holds on some days from `from` to before `to`, in the policy's time zone."""

    days: list[str]
    start: str = Field(alias="from")
    to: str
    limit: int | None


class PolicyView(BaseModel):
    """A policy. `revision` counts its changes."""

    id: str
    name: str
    revision: int
    created: datetime
    copy_frequency_s: int
    retention_hours: float
    retention_points: int
    compression: bool
    bandwidth_limit: int | None
    rpo_threshold_s: int
    shutdown_timeout_s: int
    keep_all_hours: float | None
    keep_hourly_hours: float | None
    app_consistent_hours: int | None
    bandwidth_schedule: list[BandwidthWindowView]
    bandwidth_zone: str
    resync_window: str
    delete_replica_on_disable: bool


class NetworkView(BaseModel):
    """A network that a node reported."""

    site: str
    node: str
    name: str | None
    isolated: bool | None
    active: bool | None


class NetworkMappingView(BaseModel):
    """A network mapping, by names."""

    id: str
    source_site: str
    source_network: str
    target_site: str
    target_network: str
    test_network: str | None
    created: datetime


class ProblemView(BaseModel):
    """Why a machine cannot be protected, or what one should know before (`forbids` false)."""

    code: str
    message: str
    hint: str
    forbids: bool


class ProtectableView(BaseModel):
    """A machine that could be protected."""

    vm: str
    name: str
    power: str
    node: str
    cloud: str
    mapped: bool
    ready: bool
    disks: list[dict[str, Any]]
    networks: list[str]
    problems: list[ProblemView]


class AllowedView(BaseModel):
    """Whether an operation is allowed now; if not, why, and what to do instead."""

    allowed: bool
    reason: str | None
    instead: str | None


class SideView(BaseModel):
    """One side of an item. `vm` is the machine's UUID there, if it exists."""

    node: str
    node_id: str
    site: str
    vm: str | None


class ReasonView(BaseModel):
    """Why an item is not healthy."""

    severity: str
    code: str
    message: str


class ItemHealthView(BaseModel):
    """normal, warning or critical, and why."""

    level: str
    reasons: list[ReasonView]


class HealthErrorView(BaseModel):
    """Something that is wrong now. Events tell what was."""

    code: str = Field(examples=["cannot-send"])
    category: str = Field(examples=["replication"])
    level: str = Field(examples=["critical"])
    summary: str
    possible_causes: list[str]
    recommended_action: str
    message: str
    since: datetime


class StandingView(BaseModel):
    """An order that is given again until its node has done it."""

    kind: str = Field(examples=["source.demote"])
    node: str
    attempts: int


class ItemView(BaseModel):
    """A protected item."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": UUID_EXAMPLE,
                    "name": "web-1",
                    "state": "protected",
                    "test_state": "none",
                    "direction": "primary-to-recovery",
                    "epoch": 1,
                    "active_side": "primary",
                    "rpo_s": 4.2,
                }
            ]
        }
    )

    id: str
    name: str
    vm: str
    state: str
    test_state: str
    direction: str
    epoch: int
    active_side: str | None
    primary: SideView
    recovery: SideView
    source_cloud: str
    target_cloud: str
    policy: str
    disks: dict[str, Any]
    networks: list[str]
    latest_point: dict[str, Any] | None
    rpo_s: float | None
    rpo_threshold_s: int
    health: ItemHealthView
    health_errors: list[HealthErrorView]
    replication: dict[str, Any]
    test: dict[str, Any] | None
    failover: dict[str, Any] | None
    error: dict[str, Any] | None
    standing: list[StandingView]
    active_job: dict[str, Any] | None
    last_test_time: datetime | None
    last_failover_time: datetime | None
    created: datetime
    deleted: datetime | None
    allowed_operations: dict[str, AllowedView]


class PointView(BaseModel):
    """A recovery point."""

    sequence: int
    epoch: int
    time: datetime
    digest: str
    kind: str
    consistency: str
    changed: int | None


class TaskView(BaseModel):
    """A part of a job. `progress`: fraction, text, bytes, total_bytes, rate, eta_s, as far as known."""

    ordinal: int
    name: str
    state: str
    progress: dict[str, Any] | None
    error: dict[str, Any] | None
    started: datetime | None
    ended: datetime | None


class JobView(BaseModel):
    """A job. `error` has the form of every error: code, message, hint, retry, attributes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": UUID_EXAMPLE,
                    "operation": "planned-failover",
                    "item": "web-1",
                    "state": "InProgress",
                    "progress": 0.5,
                    "requested_by": "night-operator",
                }
            ]
        }
    )

    id: str
    operation: str
    item: str | None
    item_id: str | None
    state: str
    progress: float
    requested_by: str
    parameters: dict[str, Any]
    created: datetime
    started: datetime | None
    ended: datetime | None
    seconds: float | None
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    waits_for: str | None = Field(
        description="what an unfinished job waits for: a person, or a node's answer"
    )


class JobDetailView(JobView):
    """A job with its tasks."""

    tasks: list[TaskView]


class EventView(BaseModel):
    """Something that happened."""

    id: int
    time: datetime
    severity: str
    code: str
    message: str
    item_id: str | None
    node_id: str | None
    job_id: str | None
    details: dict[str, Any]


class TokenView(BaseModel):
    """A token. `token` is there once, in the answer that creates it."""

    id: str
    name: str
    role: Role
    created: datetime
    expires: datetime | None
    token: str | None = None
