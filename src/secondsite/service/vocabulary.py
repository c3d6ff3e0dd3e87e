"""The control plane's own words: states of jobs, tasks and commands, roles of people, severities, operations.

Pure. The item's states and operations are the model's (`secondsite.model.item`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from secondsite.model.item import Operation

ENABLE: Final = "enable"
"""The job that protects a machine; the one operation that begins before the item exists."""

TEST_OPERATIONS: Final = frozenset({Operation.TEST_FAILOVER.value, Operation.CLEANUP_TEST.value})
"""Operations that run beside replication."""
CHANGE_OPERATIONS: Final = (
    frozenset({ENABLE, *(operation.value for operation in Operation)}) - TEST_OPERATIONS
)
"""Operations that change the item: one at a time."""


class JobState(StrEnum):
    """The field's words for a job."""

    NOT_STARTED = "NotStarted"
    IN_PROGRESS = "InProgress"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    SUSPENDED = "Suspended"

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class TaskState(StrEnum):
    """What one task of a job is."""

    NOT_STARTED = "NotStarted"
    IN_PROGRESS = "InProgress"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    SKIPPED = "Skipped"


class CommandState(StrEnum):
    """What a command to a node is. `delivered` may be delivered again; a result ends it."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether its result is known."""
        return self in {CommandState.DONE, CommandState.FAILED}


class Role(StrEnum):
    """What a person may do. Contributor: everything. Operator: failovers, tests, jobs. Reader: look."""

    CONTRIBUTOR = "Contributor"
    OPERATOR = "Operator"
    READER = "Reader"


class Severity(StrEnum):
    """How much an event matters."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Side(StrEnum):
    """The two sides of an item. They keep their names whichever of them is active."""

    PRIMARY = "primary"
    RECOVERY = "recovery"
