"""Opens the database, brings its schema up to date and gives out transactions.

A transaction that writes takes the write lock at its start (SQLite: BEGIN IMMEDIATE), so it never fails half-way
because another writer came first. Reading does not block writing (WAL), and a commit is on disk when it returns
(synchronous FULL). On PostgreSQL, transactions that decide on a row lock it first (`items.get(..., lock=True)`).

What waits for a change (a workflow) sleeps on `Store.bell`; a transaction that could end such a wait says so by
`Transaction.wake`, and the bell rings after the commit. Long polls sleep on a bell of their own, `Store.calls`, which only what nodes
fetch rings (`Transaction.call`): each report of a new point would wake the polls of all nodes else. Other processes are noticed by looking
again each second.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, SQLAlchemyError

from secondsite.errors import ConflictError, InvalidInputError, UnavailableError

BUSY_TIMEOUT_MS: Final = 30_000
POOL_SIZE: Final = 16
LOG_PAGES_MAX: Final = 16_384
"""64 MiB of SQLite's log: only if nobody calls `Store.checkpoint` does a commit have to do its work."""
APPLICATION: Final = "secondsite"
PROBES: Final = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
}
"""Of libpq: a database whose machine is gone is noticed within some five seconds, also in the middle of a call."""
MIGRATION_LOCK: Final = 7204513
"""The key of PostgreSQL's advisory lock; any number that nobody else uses."""


_SQLITE_TRANSIENT: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


class FencedError(SQLAlchemyError):
    """Another service has taken over this database. It counts as transient: nothing may be recorded of what it cuts short."""


def is_transient(error: BaseException) -> bool:
    """Whether the database itself failed (it is away, busy or full), so that the same may work later."""
    if isinstance(error, FencedError):
        return True
    if not isinstance(error, OperationalError):
        return isinstance(error, SQLAlchemyError) and getattr(error, "connection_invalidated", False)
    if isinstance(error.orig, sqlite3.Error):  # which calls a syntax error "operational", too
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_TRANSIENT
    return True


class Bell:
    """Wakes every waiter when something changed. Ringing costs nothing when nobody waits."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """How often it rang; read it before looking at the database, so that no ring is missed."""
        with self._condition:
            return self._count

    def ring(self) -> None:
        """Wake all who wait."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> bool:
        """Wait until it rang again after `seen`; False if the time ran out first."""
        with self._condition:
            return self._condition.wait_for(lambda: self._count != seen, timeout_s)


class Transaction:
    """One transaction; the functions of this package take it as their first argument."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._last: list[Callable[[], object]] = []
        self.wakes = False
        self.calls = False

    def execute(
        self, statement: sa.Executable, many: Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[Any]:
        """Run a statement, or the same one with each of `many` parameters; a violated promise of the schema is a ConflictError, a value that cannot be stored InvalidInputError."""
        try:
            result: sa.CursorResult[Any] = self._connection.execute(statement, many)
        except IntegrityError as error:
            raise ConflictError(
                "this would break a rule that the database keeps",
                hint="somebody else changed the same thing at the same time; look again",
                rule=str(error.orig),
            ) from error
        except (DataError, OverflowError) as error:
            # PostgreSQL holds no zero byte in a text, neither of them a number over 64 bits.
            reason = str(getattr(error, "orig", error))
            raise InvalidInputError(
                "the database cannot hold this value",
                hint="leave out zero bytes and numbers over 64 bits",
                reason=reason,
            ) from error
        return result

    def at_end(self, action: Callable[[], object]) -> None:
        """Call `action` as the last thing before the commit: for what takes a lock that all writers share."""
        self._last.append(action)

    def close(self) -> None:
        """Do what was left for the end."""
        for action in self._last:
            action()

    def wake(self) -> None:
        """Ring the bell after this transaction has committed."""
        self.wakes = True

    def call(self) -> None:
        """Ring the bell of the polls, too, after this transaction has committed: there is something to fetch."""
        self.calls = self.wakes = True


class Store:
    """See the module's docstring."""

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        self.bell = Bell()
        self.calls = Bell()
        self._engine = _engine(self.url)
        self._term: int | None = None
        self._writing = threading.Lock()

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the database and bring its schema up to date.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        store = cls(url)
        try:
            store.migrate()
        except OperationalError as error:
            store.close()
            raise UnavailableError(
                "the database cannot be reached", reason=str(error.orig), url=store.url.render_as_string()
            ) from error
        return store

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that may write: committed at the end of the block, rolled back if it raises."""
        with self._turn(), self._engine.connect() as connection, connection.begin():
            tx = Transaction(connection)
            if self._term is not None and not self._leads(connection):
                raise FencedError("another service has taken over this database")
            yield tx
            tx.close()
        if tx.wakes:
            self.bell.ring()
        if tx.calls:
            self.calls.ring()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let the threads of this process write one after the other.

        SQLite has one writer, and who finds it busy sleeps and looks again, up to 0.1 s at a time: with some 20 nodes that report,
        that made most of a call's time. Its own lock still decides; another process' writer, or a thread that waits for itself,
        is met there.
        """
        if self.url.get_backend_name() != "sqlite":
            yield
            return
        held = self._writing.acquire(timeout=BUSY_TIMEOUT_MS / 1000)
        try:
            yield
        finally:
            if held:
                self._writing.release()

    def checkpoint(self) -> None:
        """Bring what SQLite's log holds into its file, beside readers and writers; elsewhere nothing happens.

        Left to SQLite, the commit that makes the log long enough does it, and its caller waits for two more syncs.
        """
        if self.url.get_backend_name() != "sqlite":
            return
        with self._engine.connect().execution_options(secondsite_plain=True) as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def lead(self) -> None:
        """Begin a new term: from now on every other store that writes to this PostgreSQL is refused.

        It returns when what others had under way has ended. With SQLite nothing happens: there the folder's lock guards.
        """
        if self.url.get_backend_name() != "postgresql":
            return
        statement = sa.text("UPDATE vault SET term = term + 1 RETURNING term")
        with self._engine.connect() as connection, connection.begin():
            self._term = connection.scalar(statement)

    def _leads(self, connection: sa.Connection) -> bool:
        # The row's shared lock, held until the commit, is what makes a new term wait for this transaction.
        statement = sa.text("SELECT 1 FROM vault WHERE term = :term FOR SHARE")
        return connection.scalar(statement, {"term": self._term}) is not None

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A transaction that only reads; it sees one state of the database and blocks nobody."""
        with (
            self._engine.connect().execution_options(secondsite_reading=True) as connection,
            connection.begin(),
        ):
            yield Transaction(connection)

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema up to date (or, for tests, to a revision); concurrent starts wait for each other."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._engine.connect() as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=POOL_SIZE,
            pool_pre_ping=True,
            connect_args={"application_name": APPLICATION, **PROBES},
        )
        sa.event.listen(engine, "begin", _begin_postgresql)
        return engine
    engine = sa.create_engine(url, pool_size=POOL_SIZE, max_overflow=2 * POOL_SIZE)
    sa.event.listen(engine, "connect", _connect_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins too late (at the first write): we say BEGIN ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        f"wal_autocheckpoint = {LOG_PAGES_MAX}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("secondsite_plain", False):
        return
    reading = connection.get_execution_options().get("secondsite_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("secondsite_reading", False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
