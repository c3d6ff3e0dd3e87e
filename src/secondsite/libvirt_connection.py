"""Opens connections to a libvirt daemon that hold nobody up, for the two packages that talk to libvirt.

Promises: `connect` ends in bounded time, and so does every call on what it returns: a daemon that hangs is noticed by
keep-alive, and the call that waits for it fails as if the daemon had gone. Nothing is printed (libvirt's binding writes
every error to stderr unless told otherwise). What it does not do: translate the errors of calls, or open anew what was
lost.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, Final

import libvirt

from secondsite.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How long a daemon may be silent: it is asked every `interval_s` seconds, and may leave `count` of them unanswered."""

    interval_s: int = 5
    count: int = 3

    @property
    def limit_s(self) -> int:
        """After so many seconds a daemon that hangs has been noticed."""
        return self.interval_s * (self.count + 1)


KEEPALIVE: Final = Keepalive()


def connect(uri: str, keepalive: Keepalive = KEEPALIVE) -> Any:
    """Open a connection; no call on it waits longer than about `keepalive.limit_s` for a daemon that hangs.

    Raises:
        UnavailableError: there is no daemon, it refuses us, or it does not answer in that time.
    """
    _prepare_process()
    try:
        opened = _open(uri, keepalive.limit_s)
        opened.setKeepAlive(keepalive.interval_s, keepalive.count)
    except libvirt.libvirtError as error:
        raise UnavailableError(
            f"cannot connect to {uri}: {error.get_error_message() or error}",
            hint="is libvirtd running, and may this user use its socket?",
            uri=uri,
        ) from error
    return opened


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
