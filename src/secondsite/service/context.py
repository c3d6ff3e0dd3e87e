"""What every use case is given: the store, the clock, the vault's authority, and a way to start a job."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from secondsite.model.ids import JobId
from secondsite.service.arrivals import Arrivals
from secondsite.service.flood import Flood
from secondsite.service.health.watched import Watched
from secondsite.service.store.database import Store
from secondsite.service.vocabulary import Role
from secondsite.ship.identity import CertificateAuthority


def utc_now() -> datetime:
    """Return the time of this machine."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a fresh random id: a UUID, so that it is also one DNS label and safe as a folder's name."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a token, or a session of an account."""

    name: str
    role: Role
    account: str | None = None
    """The account's id, if it is one."""
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """See the module's docstring. `start_job` is called after the transaction that made the job has committed."""

    store: Store
    authority: CertificateAuthority
    start_job: Callable[[JobId], None]
    clock: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = new_id
    random_bytes: Callable[[int], bytes] = field(default=secrets.token_bytes)
    flood: Flood = field(default_factory=Flood)
    watched: Watched = field(default_factory=Watched)
    arrivals: Arrivals = field(default_factory=Arrivals)
