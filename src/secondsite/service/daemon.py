"""The composition root: makes a vault, and runs the service until it is told to stop.

`init` makes the authority, the database and the first Contributor's token. `Service` wires store, workflows, the two
faces and the monitor; `run` is the same for a process of its own. One service runs per folder (a file lock) and per
PostgreSQL database (an advisory lock): a second one is refused, or waits its turn as a standby.

A standby has everything imported and its authority loaded, and touches nothing: neither the schema nor the workflows. When it gets the
lock it goes the way of every start, under the same executor id, so what the other began goes on here.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from secondsite import durable
from secondsite.errors import UnavailableError
from secondsite.service.api.app import PREFIX, create_app
from secondsite.service.context import Context
from secondsite.service.health.watch import HealthWatch
from secondsite.service.monitor import EVERY_S, Monitor
from secondsite.service.nodes_face import NodesFace
from secondsite.service.notices.dispatch import EVERY_S as NOTICES_EVERY_S
from secondsite.service.notices.dispatch import Dispatch
from secondsite.service.offline import note_offline
from secondsite.service.passwords import check_quality
from secondsite.service.settings import DataDir
from secondsite.service.store import vaults
from secondsite.service.store.database import Store
from secondsite.service.store.lease import ServiceLock
from secondsite.service.usecases.accounts import create_account
from secondsite.service.usecases.setup import checked_name
from secondsite.service.usecases.tokens import create_token
from secondsite.service.vocabulary import Role
from secondsite.service.workflows.engine import Engine, engine_url
from secondsite.ship.http import HttpsServer
from secondsite.ship.identity import SERVICE, CertificateAuthority, ClientCertificates, Credentials

log = logging.getLogger("secondsite.service")

PEOPLE_PORT: Final = 8443
NODES_PORT: Final = 8445
LOST_EXIT: Final = 6
"""The exit code of "unavailable", as the commands have it."""
SWITCH_S: Final = 0.0005
"""How long a thread may compute while others wait. A call takes the interpreter's lock anew after each of some ten reads of the database: at
Python's 5 ms, one pass of the health watch beside it made a call of 10 ms one of 100."""
NODE_THREADS: Final = 64
"""A long poll holds a thread: enough for some fifty nodes."""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `init` made. The token is shown once."""

    token: str
    ca: Path
    ca_fingerprint: str


@dataclass(frozen=True, slots=True)
class Options:
    """How to run. Port 0 takes a free one; `names` are further names and addresses for the service's certificate."""

    listen: tuple[str, int] = ("127.0.0.1", PEOPLE_PORT)
    node_listen: tuple[str, int] = ("127.0.0.1", NODES_PORT)
    database_url: str | None = None
    names: tuple[str, ...] = ()
    standby: bool = False
    monitor_every_s: float = EVERY_S
    node_threads: int = NODE_THREADS
    speed: float = 1.0  # of the workflows' time limits


def init(
    data_dir: Path,
    vault_name: str,
    database_url: str | None = None,
    contributor: str = "admin",
    account: tuple[str, str] | None = None,
) -> Initialised:
    """Make a vault in the folder and return its first Contributor token. `account`: name and password of a first account.

    Raises:
        ConflictError: the folder, or the database, holds a vault already.
    """
    folder = DataDir(data_dir)
    checked_name(vault_name)
    if account is not None:
        check_quality(account[1], account[0])
    folder.create(database_url)
    authority = CertificateAuthority.create(vault_name)
    authority.save(folder.ca_cert, folder.ca_key)
    if database_url is None:
        folder.own_database.unlink(missing_ok=True)  # of an `init` that a crash cut: nothing refers to it yet
    url = folder.database(database_url or f"sqlite:///{folder.own_database}")
    store = Store.open(url.render_as_string(hide_password=False))
    try:
        ctx = Context(store, authority, lambda _job: None)
        with store.transaction() as tx:
            vaults.create_vault(tx, vault_name, ctx.clock())
            vaults.pin_authority(tx, authority.fingerprint)
        issued = create_token(ctx, contributor, Role.CONTRIBUTOR)
        if account is not None:
            create_account(ctx, account[0], Role.CONTRIBUTOR, account[1])
        note_offline(ctx, "service init", f"vault {vault_name}, token {contributor}")
    finally:
        store.close()
    folder.finish(database_url)
    return Initialised(issued.secret, folder.ca_cert, authority.fingerprint)


@dataclass(slots=True)
class Service:
    """A service in this process. `start` returns when both faces listen; `stop` when everything has ended."""

    data_dir: Path
    options: Options = field(default_factory=Options)
    _parts: list[Callable[[], None]] = field(default_factory=list, init=False)
    addresses: dict[str, Any] = field(default_factory=dict, init=False)
    lost: threading.Event = field(default_factory=threading.Event, init=False)
    """Set when the service must stop by itself: its lock on the database is gone."""
    stopping: threading.Event = field(default_factory=threading.Event, init=False)
    """Set when it must stop, for whatever reason; `run` waits for it, and a standby stops waiting."""
    on_lost: Callable[[], None] = lambda: None
    """Called first of all when the lock is gone, from another thread."""
    _engine: Engine | None = field(default=None, init=False)

    def start(self) -> None:
        """Start everything; what was started is stopped again if a later part fails.

        A standby returns when it has taken over, or with `stopping` set, and then without having started anything.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        folder, options = DataDir(self.data_dir), self.options
        database = folder.database(options.database_url)
        lock = durable.FileLock(folder.lock)
        lock.acquire()
        self._parts.append(lock.release)
        authority = CertificateAuthority.load(folder.ca_cert, folder.ca_key)
        if options.standby:
            _check_copy(database, authority)
        if not self._become_active(folder, database):
            return
        credentials = authority.issue_credentials(SERVICE, folder.tls, names=_names(options))
        store = Store.open(database.render_as_string(hide_password=False))
        self._parts.append(store.close)
        store.lead()
        with store.transaction() as tx:
            vaults.pin_authority(tx, authority.fingerprint)
            vault = vaults.get_vault(tx)
        engine = self._engine = Engine(engine_url(folder.path, database), speed=options.speed)
        ctx = Context(store, authority, engine.submit)
        self._parts.append(engine.close)
        engine.start(ctx)
        face = NodesFace(ctx, {"vault": vault.name, "name": SERVICE})
        nodes = HttpsServer(
            options.node_listen,
            credentials,
            face.router(),
            client_certificates=ClientCertificates.OPTIONAL,
            threads=options.node_threads,
        )
        nodes.start()
        self._parts.append(nodes.stop)
        self._parts.append(face.close)
        people = PeopleServer(options.listen, credentials, ctx)
        people.start()
        self._parts.append(people.stop)
        monitor = Monitor(ctx, options.monitor_every_s, engine.prune)
        monitor.start()
        self._parts.append(monitor.close)
        health = HealthWatch(ctx, options.monitor_every_s)
        health.start()
        self._parts.append(health.close)
        notices = Dispatch(ctx, min(NOTICES_EVERY_S, options.monitor_every_s))
        notices.start()
        self._parts.append(notices.close)
        self._tell(folder, authority, people.address, nodes.address)

    def _become_active(self, folder: DataDir, database: sa.URL) -> bool:
        held = ServiceLock(database, self._lose)
        self._parts.append(held.release)

        def waiting() -> None:
            durable.write_atomic(folder.waiting, json.dumps({"pid": os.getpid()}).encode())
            log.info("standby: the active service holds the lock; this one waits for it")

        try:
            return held.acquire(wait=self.options.standby, stopping=self.stopping, waiting=waiting)
        finally:
            folder.waiting.unlink(missing_ok=True)

    def _lose(self) -> None:
        # Another service may go on with the workflows this moment.
        self.on_lost()
        if self._engine is not None:
            self._engine.interrupt()
        self.lost.set()
        self.stopping.set()

    def stop(self) -> None:
        """Stop everything, the last started first. Workflows go on at the next start.

        A part that cannot put away what it has (the database is gone) must not keep the others from ending.
        """
        while self._parts:
            part = self._parts.pop()
            try:
                part()
            except Exception:
                log.exception("a part of the service did not end well")

    def _tell(
        self,
        folder: DataDir,
        authority: CertificateAuthority,
        people: tuple[str, int],
        nodes: tuple[str, int],
    ) -> None:
        self.addresses = {
            "pid": os.getpid(),
            "url": f"https://{_host(people[0])}:{people[1]}{PREFIX}",
            "people": {"host": people[0], "port": people[1]},
            "nodes": {"host": nodes[0], "port": nodes[1]},
            "ca": str(folder.ca_cert),
            "ca_fingerprint": authority.fingerprint,
        }
        durable.write_atomic(folder.running, json.dumps(self.addresses, indent=1).encode())
        self._parts.append(lambda: folder.running.unlink(missing_ok=True))


def _check_copy(database: sa.URL, authority: CertificateAuthority) -> None:
    """A standby with the wrong authority is told so while the other one lives, if the database can tell."""
    store = Store(database.render_as_string(hide_password=False))
    try:
        with store.reading() as tx:
            vaults.check_authority(tx, authority.fingerprint)
    except SQLAlchemyError as error:
        log.warning("the standby could not compare its authority with the vault's: %s", error)
    finally:
        store.close()


def _end_at_once() -> None:
    sys.stderr.write(
        "error [unavailable]: the lock on the database was lost, so the service ended\n"
        "  hint: start it again; it waits as a standby, or until the database is back\n"
    )
    sys.stderr.flush()
    os._exit(LOST_EXIT)


def run(
    data_dir: Path, options: Options | None = None, *, ready: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Run a service until SIGTERM or SIGINT. `ready` is called with its addresses once it listens.

    Raises:
        UnavailableError: the database cannot be reached.

    When the connection that holds the database's lock breaks, the process ends on the spot with code 6, as if it were killed: an orderly end
    takes seconds in which it could still take a workflow away from its successor. Start it again: what ran goes on.
    """
    sys.setswitchinterval(SWITCH_S)
    service = Service(data_dir, options or Options(), on_lost=_end_at_once)
    previous = {
        number: signal.signal(number, lambda *_: service.stopping.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        service.start()
        if not service.stopping.is_set():
            log.info("the service listens: %s", service.addresses)
            if ready is not None:
                ready(service.addresses)
        service.stopping.wait()
    finally:
        service.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)


class PeopleServer:
    """The people's face: uvicorn in a thread of its own, on a socket that is bound before it starts."""

    def __init__(self, address: tuple[str, int], credentials: Credentials, ctx: Context) -> None:
        self._address = address
        config = uvicorn.Config(
            create_app(ctx),
            ssl_certfile=str(credentials.cert_file),
            ssl_keyfile=str(credentials.key_file),
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
        )
        config.load()
        assert config.ssl is not None
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        self._server = uvicorn.Server(config)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The bound address."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Bind and serve; UnavailableError if the address can't be bound."""
        host, port = self._address
        try:
            self._socket = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
            )
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {host}:{port}: {error}", hint="is another process on this port?"
            ) from error
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="people", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Finish what runs (for a few seconds) and end."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()


def _names(options: Options) -> list[str]:
    names = ["localhost", "127.0.0.1", *options.names]
    for host, _port in (options.listen, options.node_listen):
        if host not in {"", "0.0.0.0", "::"}:  # noqa: S104 (compared, not bound)
            names.append(host)
    return list(dict.fromkeys(names))


def _host(host: str) -> str:
    if host in {"", "0.0.0.0", "::"}:  # noqa: S104 (compared, not bound)
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
