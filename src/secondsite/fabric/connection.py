"""The connection to a libvirt daemon: opened when needed, re-opened when lost, its errors turned into ours.

Promises: before each use the daemon has answered; a connection that broke is closed and one new one is tried. A daemon
that hangs is noticed within about 20 s (secondsite.libvirt_connection), and the waiting call raises
UnavailableError. Thread-safe: libvirt's connections are.
It does not retry what failed in the middle: the caller's operation may have happened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from secondsite.fabric.unlisted import Unlisted
from secondsite.libvirt_connection import KEEPALIVE, Keepalive, connect

KEEPALIVE_INTERVAL_S: Final = KEEPALIVE.interval_s
KEEPALIVE_COUNT: Final = KEEPALIVE.count

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
        self.unlisted = Unlisted()
        self._keepalive = Keepalive(keepalive_interval_s, keepalive_count)
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
                self._open = connect(self.uri, self._keepalive)
            return self._open

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
