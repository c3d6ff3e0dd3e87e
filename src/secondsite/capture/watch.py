"""Keeps the guest running while its snapshot is open.

While a snapshot is open QEMU copies the old contents of what the guest overwrites into scratch files. When they cannot
grow, QEMU pauses the guest. So the snapshot is given up before that, when space falls below a reserve; and if the
guest was paused all the same, it goes on within a quarter of a second: measured, it notices nothing but the delay.

A libvirtd that goes away takes nothing from the guest but this watch's means; when it is back, the watch goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import libvirt

from secondsite.errors import NoSpaceError, NotFoundError, SecondSiteError

_INTERVAL_S: Final = 0.25
_HINT: Final = "give the scratch folder more space, or copy more often so that less changes meanwhile"


def free_space(folder: Path) -> int:
    """Return the bytes that are free for everybody."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def is_paused_by_io_error(domain: Any) -> bool:
    """Whether QEMU stopped the guest because a write failed."""
    state, reason = domain.state()
    return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR)


def resume_after_abort(domain: Any) -> None:
    """Let a guest go on that was paused for want of scratch space. The backup job has ended before."""
    if is_paused_by_io_error(domain):
        domain.resume()


class ScratchWatch:
    """A thread that has the snapshot given up, if the guest is stopped or space runs out.

    give_up: ends the job and lets the guest go on, through the domain that it is given; raises if it cannot tell whether it
        did, and is called again then.
    reopen: returns the domain by a new connection, after the old one was lost; None: then the watch ends.
    """

    def __init__(
        self,
        domain: Any,
        folder: Path,
        reserve: int,
        give_up: Callable[[Any], None],
        reopen: Callable[[], Any] | None = None,
    ) -> None:
        self._domain = domain
        self._reopen = reopen
        self._folder = folder
        self._reserve = reserve
        self._give_up = give_up
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scratch-watch", daemon=True)
        self.error: NoSpaceError | None = None
        """Why the snapshot was given up."""

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End; returns when the thread has. May be called twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            try:
                self.error = self.error or self._problem()
                if self.error is not None:
                    self._give_up(self._domain)
                    return
            except (libvirt.libvirtError, SecondSiteError, OSError):
                if not self._renew():
                    return

    def _renew(self) -> bool:
        """Whether there is anything left to watch; whoever reads the snapshot meets the same errors and reports them."""
        if self._reopen is None:
            return False
        try:
            self._domain = self._reopen()
        except NotFoundError:
            return False
        except SecondSiteError:
            pass  # libvirtd is still away
        return True

    def _problem(self) -> NoSpaceError | None:
        if is_paused_by_io_error(self._domain):
            return NoSpaceError("the snapshot ran out of scratch space and stopped the guest", hint=_HINT)
        free = free_space(self._folder)
        if free < self._reserve:
            return NoSpaceError(
                f"the snapshot was given up: {free} bytes are left for its scratch files",
                hint=_HINT,
                free=free,
            )
        return None
