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
NO_CANCEL: Final = {
    ENABLE: "disable the item: that ends the initial replication",
    Operation.TEST_FAILOVER.value: "let it end, then remove it: cleanup-test",
    Operation.CLEANUP_TEST.value: "let it end",
    Operation.CHANGE_POINT.value: "the machine that ran is discarded already: let it end, then choose again or cancel the failover",
    Operation.CANCEL.value: "the machine that ran is discarded already: let it end",
    Operation.COMMIT.value: "recovery points are given up as it goes on: let it end",
    Operation.PAUSE.value: "resume undoes it",
    Operation.RESUME.value: "pause undoes it",
    Operation.RESYNC.value: "it ends when the source has taken the order",
    Operation.DISABLE.value: "parts of it are removed already: let it end, or run disable again if it fails",
}
"""Jobs that cannot be cancelled once they have begun, with what to do instead. The others can, until their point of no return."""


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
