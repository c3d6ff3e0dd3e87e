"""The one error tree. Every failure that reaches a person has a code, a message, a hint and a retry class.

`code` is stable: scripts and the API rely on it. HTTP status codes are chosen only in the API, exit codes only
in the CLI. Classify at the leaf, retry in one place.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class Retry(StrEnum):
    """Whether doing the same again can help."""

    NEVER = "never"
    LATER = "later"  # recoverable: network, space, a peer that restarts
    COMPARE = "compare"  # tracking lost or state unknown: resynchronise by compare, then go on


class SecondSiteError(Exception):
    """Root of all errors that Second Site raises on purpose.

    `attributes` are the facts of the case, for logs and for the API; they must be JSON values.
    """

    code: ClassVar[str] = "internal"
    retry: ClassVar[Retry] = Retry.NEVER
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, **attributes: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.attributes = attributes

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that the API, job records and node reports share."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retry": self.retry.value,
            "attributes": self.attributes,
        }


class RemoteError(SecondSiteError):
    """An error that a peer reported in the form of `to_dict`; its code and retry class are the peer's."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(
            str(fields.get("message", "the peer gave no message")),
            hint=str(fields.get("hint", "")),
            **dict(fields.get("attributes") or {}),
        )
        self.code = str(fields.get("code", "internal"))  # type: ignore[misc]
        try:
            self.retry = Retry(fields.get("retry", "never"))  # type: ignore[misc]
        except ValueError:
            self.retry = Retry.NEVER  # type: ignore[misc]


# -- input -------------------------------------------------------------------------------------------------


class InvalidInputError(SecondSiteError):
    """A value from outside does not parse or is out of range."""

    code = "invalid_input"


class NotFoundError(SecondSiteError):
    """The named thing does not exist."""

    code = "not_found"


class ConflictError(SecondSiteError):
    """The thing exists already, or is used in a way that forbids this."""

    code = "conflict"


class WrongRoleError(ConflictError):
    """The node has another role for the item than the command is for."""

    code = "wrong_role"


class OperationRefusedError(SecondSiteError):
    """The state of the item does not allow the operation; the hint says what to do instead."""

    code = "operation_refused"


class UnauthenticatedError(SecondSiteError):
    """No valid certificate or token was shown."""

    code = "unauthenticated"


class LockedOutError(SecondSiteError):
    """Too many logins failed under this name, or from this address; the attribute `retry_after_s` says how long to wait."""

    code = "locked_out"
    retry = Retry.LATER


class ForbiddenError(SecondSiteError):
    """The caller is known but its role does not allow this."""

    code = "forbidden"


# -- data --------------------------------------------------------------------------------------------------


class CorruptError(SecondSiteError):
    """Stored or received bytes are not what they claim to be. Never served, never retried blindly."""

    code = "corrupt"


class StaleEpochError(SecondSiteError):
    """A log, boot or command carries an epoch older than the item's: another side took over."""

    code = "stale_epoch"
    default_hint = "this side was superseded by a failover; look at the item before anything else"


class OutOfSequenceError(SecondSiteError):
    """The point does not follow the journal's last one: the sender's view of the replica is wrong."""

    code = "out_of_sequence"
    retry = Retry.COMPARE


class TrackingLostError(SecondSiteError):
    """Changed-block tracking is missing or inconsistent; what changed is unknown, so it is found by compare."""

    code = "tracking_lost"
    retry = Retry.COMPARE


class PinnedError(SecondSiteError):
    """A reader holds what this would remove."""

    code = "pinned"
    retry = Retry.LATER


# -- environment -------------------------------------------------------------------------------------------


class UnavailableError(SecondSiteError):
    """A peer, a hypervisor or a tool does not answer now."""

    code = "unavailable"
    retry = Retry.LATER


class NoSpaceError(SecondSiteError):
    """A file system is full (or over its reserve)."""

    code = "no_space"
    retry = Retry.LATER


class TimeoutExceededError(SecondSiteError):
    """A bounded wait ended without the thing that was waited for."""

    code = "timeout"
    retry = Retry.LATER


class UnsupportedError(SecondSiteError):
    """The thing is well-formed but this version cannot do it."""

    code = "unsupported"
