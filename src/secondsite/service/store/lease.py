"""The right to act: one service at a time uses a PostgreSQL database. SQLite files are guarded by the folder's lock.

An advisory lock of a connection of its own. PostgreSQL gives it up when that connection ends: at once when the holder
is killed (its kernel closes the socket), and within some five seconds when the holder's machine is gone, because the
connection asks the server to probe it (TCP keepalive). The holder notices the loss the moment that the connection
closes, or within some five seconds when nothing comes through any more; `lost` is called, and it must stop before it acts again.

A standby asks four times a second. Who waited lets a moment pass after it got the lock (`SETTLE_S`), so that a holder that lost only its
connection has stopped, ends the connections that it left, and begins a new term (`Store.lead`): what the other still wants to write is refused.
It does not notice a holder that is stopped but alive (SIGSTOP): such a one keeps the lock.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from secondsite.errors import ConflictError, UnavailableError
from secondsite.service.store.database import APPLICATION, PROBES

SERVICE_LOCK: Final = 7204514
"""The key of PostgreSQL's advisory lock; any number that nobody else uses."""
ASK_EVERY_S: Final = 0.25
SETTLE_S: Final = 1.0

LEFT_BY: Final = (APPLICATION, "dbos_transact")
"""Names that our connections, and those of the workflows' records, give themselves."""
_SERVER_PROBES: Final = (
    "SET tcp_keepalives_idle = 2",
    "SET tcp_keepalives_interval = 1",
    "SET tcp_keepalives_count = 3",
    "SET tcp_user_timeout = 5000",
)
"""Of this session only. On a Unix socket PostgreSQL takes and ignores them."""

log = logging.getLogger("secondsite.service")


class ServiceLock:
    """See the module's docstring. `lost` is called from another thread, at most once."""

    def __init__(self, url: sa.URL, lost: Callable[[], None], *, check_every_s: float = 2.0) -> None:
        self._engine = _engine(url) if url.get_backend_name() == "postgresql" else None
        self._lost = lost
        self._check_every_s = check_every_s
        self._connection: sa.Connection | None = None
        self._alarm, self._listener = socket.socketpair()
        self._thread: threading.Thread | None = None

    def acquire(
        self,
        *,
        wait: bool,
        stopping: threading.Event | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> bool:
        """Take the lock; False if `stopping` was set first.

        `waiting` is called once if another service has it. While it waits, a database that is away is asked again.

        Raises:
            ConflictError: another service has it, and `wait` is not set.
            UnavailableError: the database cannot be reached, and `wait` is not set.
        """
        if self._engine is None:
            return True
        stopping = stopping or threading.Event()
        waited = False
        while not self._try(patient=wait):
            if not wait:
                raise ConflictError(
                    "another service uses this database", hint="stop it, or start this one as a standby"
                )
            if not waited:
                waited = True
                waiting()
            if stopping.wait(ASK_EVERY_S):
                return False
        if waited and stopping.wait(SETTLE_S):
            return False
        if waited:
            self._cut_off()
        self._thread = threading.Thread(target=self._watch, name="service-lock", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the lock up."""
        with suppress(OSError):
            self._alarm.send(b"x")
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._drop()
        if self._engine is not None:
            self._engine.dispose()
        self._alarm.close()
        self._listener.close()

    def _try(self, *, patient: bool) -> bool:
        assert self._engine is not None
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
                for statement in _SERVER_PROBES:
                    self._connection.exec_driver_sql(statement)
            return bool(self._connection.scalar(sa.text(f"SELECT pg_try_advisory_lock({SERVICE_LOCK})")))
        except SQLAlchemyError as error:
            self._drop()
            if not patient:
                raise UnavailableError(
                    "the database cannot be reached", reason=str(getattr(error, "orig", error))
                ) from error
            log.warning("the standby does not reach the database, and goes on asking: %s", error)
            return False

    def _cut_off(self) -> None:
        """End what the holder before has left at the server: a transaction of a machine that froze would hold its rows for hours."""
        assert self._connection is not None
        self._connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY(:names)"
                " AND datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
            ),
            {"names": list(LEFT_BY)},
        )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()

    def _watch(self) -> None:
        assert self._connection is not None
        with selectors.DefaultSelector() as ears:
            ears.register(self._listener, selectors.EVENT_READ)
            ears.register(_descriptor(self._connection), selectors.EVENT_READ)
            while True:
                heard = ears.select(self._check_every_s)
                if any(key.fileobj is self._listener for key, _ in heard):
                    return
                try:
                    self._connection.scalar(sa.text("SELECT 1"))
                except SQLAlchemyError:
                    self._lost()
                    return


def _engine(url: sa.URL) -> sa.Engine:
    # A pool would keep the connection, and with it the lock, after it was given back.
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        poolclass=sa.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args=dict(PROBES),
    )


def _descriptor(connection: sa.Connection) -> int:
    driver: Any = connection.connection.driver_connection
    return int(driver.fileno())
