"""The connection to a libvirt daemon: opened when needed, re-opened when lost, its errors turned into ours.

Promises: before each use the daemon has answered; a connection that broke is closed and one new one is tried. A daemon
that hangs is noticed by keep-alive within about 20 s (or is not waited for longer when it is asked first), and the
waiting call raises UnavailableError. Nothing is printed
(libvirt's binding writes every error to stderr unless told otherwise). Thread-safe: libvirt's connections are.
It does not retry what failed in the middle: the caller's operation may have happened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, Final

import libvirt

from secondsite.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NoSpaceError,
    NotFoundError,
    SecondSiteError,
    TimeoutExceededError,
    UnavailableError,
    UnsupportedError,
)
from secondsite.fabric.port import HypervisorError

KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 3

_CLASSES: Final[dict[type[SecondSiteError], tuple[str, ...]]] = {
    NotFoundError: ("NO_DOMAIN", "NO_NETWORK", "NO_DOMAIN_CHECKPOINT", "NO_STORAGE_VOL", "NO_NWFILTER"),
    ConflictError: ("DOM_EXIST", "OPERATION_INVALID", "RESOURCE_BUSY"),
    UnsupportedError: (
        "CONFIG_UNSUPPORTED",
        "NO_SUPPORT",
        "OPERATION_UNSUPPORTED",
        "ARGUMENT_UNSUPPORTED",
        "CPU_INCOMPATIBLE",
    ),
    InvalidInputError: ("XML_ERROR", "XML_DETAIL", "XML_INVALID_SCHEMA", "INVALID_ARG"),
    UnavailableError: (
        "RPC",
        "NO_CONNECT",
        "INVALID_CONN",
        "AUTH_FAILED",
        "AUTH_UNAVAILABLE",
        "AUTH_CANCELLED",
    ),
    ForbiddenError: ("OPERATION_DENIED", "ACCESS_DENIED"),
    TimeoutExceededError: ("OPERATION_TIMEOUT",),
}
_CLASS_BY_CODE: Final = {
    getattr(libvirt, f"VIR_ERR_{name}"): error_class
    for error_class, names in _CLASSES.items()
    for name in names
}
_CONNECTION_DOMAINS: Final = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})


def translate(error: libvirt.libvirtError, doing: str) -> SecondSiteError:
    """Return our error for libvirt's; `doing` begins its message ("start web01")."""
    code, domain = error.get_error_code(), error.get_error_domain()
    text = error.get_error_message() or str(error)
    message = f"{doing}: {text}"
    facts = {"libvirt_code": code, "libvirt_domain": domain}
    if "No space left on device" in text:
        return NoSpaceError(message, hint="free space where the hypervisor writes", **facts)
    error_class = _CLASS_BY_CODE.get(code)
    if error_class is None or error_class is UnavailableError:
        if error_class is None and domain not in _CONNECTION_DOMAINS:
            return HypervisorError(message, hint="libvirt's and QEMU's logs on the host say more", **facts)
        return UnavailableError(message, hint="is libvirtd running on the host?", **facts)
    return error_class(message, **facts)


@cache
def _prepare_process() -> None:
    """Silence libvirt, and run its event loop, which keep-alive needs. Once per process, whoever asks first."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()


def _run_events() -> None:
    while True:
        # An error here is one iteration's; the next goes on.
        with suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def _open(uri: str, timeout_s: float) -> Any:
    """Open a connection, in bounded time: keep-alive watches only one that is open, and a daemon may hang before.

    The thread that waits for such a daemon stays until it answers or ends, and then closes what it got.
    """
    answered: SimpleQueue[Any] = SimpleQueue()
    given_up = threading.Lock()

    def run() -> None:
        try:
            opened = libvirt.open(uri)
        except libvirt.libvirtError as error:
            answered.put(error)
            return
        if given_up.acquire(blocking=False):
            answered.put(opened)
        else:
            opened.close()

    threading.Thread(target=run, name="libvirt-open", daemon=True).start()
    try:
        outcome = answered.get(timeout=timeout_s)
    except Empty:
        if given_up.acquire(blocking=False):
            raise UnavailableError(
                f"{uri} does not answer", hint="libvirtd hangs: look at its log, restart it", uri=uri
            ) from None
        outcome = answered.get()  # it came at the last moment
    if isinstance(outcome, libvirt.libvirtError):
        raise outcome
    return outcome


class Connection:
    """See the module's docstring. `open` is not called before the first use."""

    def __init__(
        self,
        uri: str,
        *,
        keepalive_interval_s: int = KEEPALIVE_INTERVAL_S,
        keepalive_count: int = KEEPALIVE_COUNT,
    ) -> None:
        self.uri = uri
        self._keepalive = (keepalive_interval_s, keepalive_count)
        self._lock = threading.Lock()
        self._open: Any = None

    @contextmanager
    def use(self, doing: str) -> Iterator[Any]:
        """Yield a libvirt connection that has just answered; libvirt's errors in the block leave as ours."""
        try:
            yield self._live()
        except libvirt.libvirtError as error:
            raise translate(error, doing) from error

    @contextmanager
    def domain(self, vm: str, doing: str) -> Iterator[Any]:
        """Yield the domain with that UUID or name; as `use`."""
        with self.use(f"{doing} {vm}") as connection:
            yield lookup(connection, vm)

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        with self._lock:
            self._drop()

    def _live(self) -> Any:
        with self._lock:
            if self._open is not None:
                try:
                    self._open.getLibVersion()  # a round trip of 0.1 ms
                except libvirt.libvirtError:
                    self._drop()
            if self._open is None:
                self._open = self._connect()
            return self._open

    def _connect(self) -> Any:
        _prepare_process()
        try:
            opened = _open(self.uri, self._keepalive[0] * (self._keepalive[1] + 1))
            opened.setKeepAlive(*self._keepalive)
        except libvirt.libvirtError as error:
            raise UnavailableError(
                f"cannot connect to {self.uri}: {error.get_error_message() or error}",
                hint="is libvirtd running, and may this user use its socket?",
                uri=self.uri,
            ) from error
        return opened

    def _drop(self) -> None:
        if self._open is not None:
            with suppress(libvirt.libvirtError):
                self._open.close()
            self._open = None


def lookup(connection: Any, vm: str) -> Any:
    """Return the domain with that UUID, else with that name; raise NotFoundError."""
    with suppress(libvirt.libvirtError):
        return connection.lookupByUUIDString(vm)
    try:
        return connection.lookupByName(vm)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        raise NotFoundError(f"no machine {vm!r}", hint="see the node's inventory", vm=vm) from error
