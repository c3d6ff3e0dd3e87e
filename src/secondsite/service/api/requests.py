"""The shapes of requests' bodies, with examples: one half of what the OpenAPI document is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from secondsite.service.usecases.operations import PointChoice, ShutdownSource, TestNetwork
from secondsite.service.vocabulary import Role

Name = Annotated[str, Field(min_length=1, max_length=63)]
_NONE_BY_ZERO = frozenset({"bandwidth_limit", "keep_all_hours", "keep_hourly_hours", "app_consistent_hours"})


class Body(BaseModel):
    """A request's body: unknown fields are refused, so that a typing error is noticed."""

    model_config = ConfigDict(extra="forbid")


class SiteBody(Body):
    """A new site."""

    name: Name = Field(examples=["amsterdam"])


class RegistrationKeyBody(Body):
    """A new registration key."""

    site: str = Field(description="name or id", examples=["amsterdam"])
    uses_max: int | None = Field(
        1, description="how many nodes may enrol with it; null: any number", examples=[1]
    )


class CloudBody(Body):
    """A new cloud."""

    name: Name = Field(examples=["gold-ams"])
    site: str = Field(examples=["amsterdam"])
    nodes: list[str] = Field(default_factory=list, description="names or ids", examples=[["host-1"]])
    storage: str | None = Field(default=None, examples=["/srv/secondsite"])


class CloudChange(Body):
    """Nodes to add and to take out."""

    add: list[str] = Field(default_factory=list, examples=[["host-2"]])
    remove: list[str] = Field(default_factory=list, examples=[[]])


class CloudMappingBody(Body):
    """Machines of `source` replicate to `target` under `policy`."""

    source: str = Field(examples=["gold-ams"])
    target: str = Field(examples=["gold-rtm"])
    policy: str = Field(examples=["five-minutes"])


class BandwidthWindowBody(Body):
    """A limit that holds on some days from `from` to before `to`, in the policy's time zone."""

    days: list[str] = Field(description="mon, tue, wed, thu, fri, sat, sun", examples=[["mon", "tue"]])
    start: str = Field(alias="from", examples=["08:00"])
    to: str = Field(description="not later than `from`: passes midnight", examples=["18:00"])
    limit: int | None = Field(None, description="bytes a second; none: no limit", examples=[2_097_152])


class PolicyChange(Body):
    """Settings of a policy; what is left out keeps its value (or the default, in a new one)."""

    copy_frequency_s: int | None = Field(default=None, description="5, 30, 300 or 900", examples=[300])
    retention_hours: float | None = Field(default=None, examples=[24.0])
    retention_points: int | None = Field(default=None, examples=[2880])
    compression: bool | None = Field(default=None, examples=[True])
    bandwidth_limit: int | None = Field(
        None, description="bytes a second; 0: no limit", examples=[12_500_000]
    )
    rpo_threshold_s: int | None = Field(default=None, examples=[900])
    shutdown_timeout_s: int | None = Field(default=None, examples=[120])
    keep_all_hours: float | None = Field(
        None, description="older points are kept one an hour; 0: every point until the end", examples=[24.0]
    )
    keep_hourly_hours: float | None = Field(
        None, description="older points are kept one a day; 0: one an hour until the end", examples=[72.0]
    )
    app_consistent_hours: int | None = Field(
        None, description="1 to 12: so often the guest is frozen for a moment; 0: never", examples=[4]
    )
    bandwidth_schedule: list[BandwidthWindowBody] | None = Field(
        None, description="the first window that holds decides; outside of all, bandwidth_limit does"
    )
    bandwidth_zone: str | None = Field(
        None, description="time zone of the schedule", examples=["Europe/Amsterdam"]
    )
    resync_window: str | None = Field(
        None,
        description='when a source that lost its tracking compares by itself: "HH:MM-HH:MM" (UTC), "always", "manual"',
        examples=["18:30-06:00"],
    )
    delete_replica_on_disable: bool | None = Field(
        None, description="what disable does unless told otherwise", examples=[False]
    )

    def settings(self) -> dict[str, Any]:
        """Return the settings that were given. Where 0 means "not at all", it takes the setting away."""
        given = self.model_dump(exclude={"name", "bandwidth_schedule"}, exclude_unset=True, exclude_none=True)
        settings = {
            key: None if key in _NONE_BY_ZERO and not value else value for key, value in given.items()
        }
        if self.bandwidth_schedule is not None:
            settings["bandwidth_schedule"] = [
                window.model_dump(by_alias=True) for window in self.bandwidth_schedule
            ]
        return settings


class PolicyBody(PolicyChange):
    """A new policy."""

    name: Name = Field(examples=["five-minutes"])


class NetworkMappingBody(Body):
    """Where interfaces on a network are connected at the other site."""

    source_site: str = Field(examples=["amsterdam"])
    source_network: str = Field(examples=["default"])
    target_site: str = Field(examples=["rotterdam"])
    target_network: str = Field(examples=["default"])
    test_network: str | None = Field(
        None, description="for test failovers; none: disconnected", examples=["isolated"]
    )


class ProtectBody(Body):
    """A machine to protect."""

    vm: str = Field(description="UUID or name", examples=["web-1"])
    cloud: str | None = Field(
        default=None, description="its cloud, if the name is not unique", examples=["gold-ams"]
    )
    name: Name | None = Field(
        default=None, description="the item's name; default: the machine's", examples=["web-1"]
    )
    exclude_disks: list[str] = Field(default_factory=list, examples=[["vdb"]])
    start_at: AwareDatetime | None = Field(
        default=None,
        description="when the initial replication begins, at most 7 days ahead; none: at once",
        examples=["2026-11-24T01:00:00Z"],
    )
    seed: str | None = Field(
        default=None,
        max_length=4000,
        description="folder on the target node's host with one image per disk, such as vda.qcow2 or vda.raw: "
        "only what differs is shipped",
        examples=["/mnt/medium/web-1"],
    )


class TestFailoverBody(Body):
    """Options of a test failover."""

    __test__ = False  # pytest must not collect it

    sequence: int | None = Field(default=None, ge=1, description="the point; none: the latest", examples=[42])
    network: TestNetwork = Field(default=TestNetwork.MAPPED, examples=["mapped"])


class PlannedFailoverBody(Body):
    """Options of a planned failover."""

    shutdown_timeout_s: int | None = Field(
        default=None, ge=1, le=3600, description="none: the policy's", examples=[120]
    )


class UnplannedFailoverBody(Body):
    """Options of an unplanned failover."""

    sequence: int | None = Field(
        default=None, ge=1, description="the point; none: as `point` says", examples=[42]
    )
    point: PointChoice = Field(
        default=PointChoice.LATEST, description="which one, if no sequence is given", examples=["latest"]
    )
    shutdown_source: ShutdownSource = Field(
        default=ShutdownSource.TRY,
        description="try: shut the machine down and ship its last changes, if its site still answers; "
        "no: its power is cut, if its site still answers",
        examples=["try"],
    )
    shutdown_timeout_s: int | None = Field(
        default=None, ge=1, le=3600, description="none: the policy's", examples=[120]
    )


class ChangePointBody(Body):
    """Which point runs instead."""

    sequence: int | None = Field(
        default=None, ge=1, description="the point; none: as `point` says", examples=[41]
    )
    point: PointChoice = Field(default=PointChoice.LATEST, examples=["latest-app-consistent"])


class CancelBody(Body):
    """Options of a cancelled failover."""

    start: bool = Field(
        default=False, description="start the machine at its old place also if it did not run there before"
    )


class DisableBody(Body):
    """Options of disable."""

    delete_replica: bool | None = Field(
        default=None,
        description="also delete disks of the side that does not run (an old machine's, or a base made of them); "
        "none: as the policy's delete_replica_on_disable says",
    )
    force: bool = Field(default=False, description="go on without nodes that do not answer")


class ResumeBody(Body):
    """What lets a suspended job go on."""

    confirm: str = Field(
        description="the sentence that the job shows as `result.confirm`: whoever sends it vouches for it",
        examples=["I checked that web-1 does not run on host-2"],
    )


class TokenBody(Body):
    """A new token."""

    name: Name = Field(examples=["night-operator"])
    role: Role = Field(examples=["Operator"])
    valid_days: float | None = Field(default=None, examples=[90])
