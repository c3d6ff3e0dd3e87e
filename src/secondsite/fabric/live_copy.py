"""Copying into the image of a running machine what it still reads from its backing, and nothing more: the backing stays.

libvirt's block pull takes the backing out of the image's header as soon as all is copied, while QEMU still keeps in its
memory where the copies lie: a QEMU that is killed there leaves an image that reads as zeros and says that it needs nothing
else. So QEMU copies first in a job of ours that is never let finish, its map is flushed, and the pull after it has nothing
to copy: a header without a backing is proof, whoever was killed whenever.

libvirt does not know the job and leaves it alone; it outlives this process and a restart of libvirtd, and who comes next
goes on watching it. It ends with its QEMU. Nothing that it copies is marked as changed.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final

import libvirt_qemu

from secondsite.errors import NoSpaceError, SecondSiteError, TimeoutExceededError
from secondsite.fabric.libvirt_power import Waiting
from secondsite.fabric.port import Cancelled, CancelledError, HypervisorError, Progress

_END_S: Final = 60.0
"""How long a job may take to end once it was told to: it waits for the request that it has out at the view."""
GOING_S: Final = 5.0
"""How long a QEMU that ends may take after it has ended its jobs or its monitor."""
_NO_SPACE: Final = "no space left on device"
_TROUBLES: Final = {"nospace": _NO_SPACE, "failed": "a read or a write failed"}


class LiveCopy:
    """The job that copies the backing of one disk of a running machine; `node` is QEMU's name of its image."""

    def __init__(self, domain: Any, disk: str, node: str, waiting: Waiting) -> None:
        self._domain = domain
        self._disk = disk
        self._node = node
        self._waiting = waiting
        self._id = f"secondsite-pull-{disk}"

    def run(self, progress: Progress, cancelled: Cancelled) -> None:
        """Copy until all is there; a job that runs already is taken over. Nothing is flushed yet afterwards."""
        job = self._look()
        if job is None or job["status"] == "aborting" or self._trouble():
            self._end()
            self._call("block-stream", self._start())
        reason = "somebody ended the job"
        while (job := self._look()) is not None:
            progress(job["current-progress"], job["total-progress"])
            if job["status"] == "pending":  # it would drop the backing now
                self._end()
                return
            if trouble := self._trouble():
                reason = trouble
                break
            if cancelled():
                self._end()
                raise CancelledError(f"making {self._what} stand alone was cancelled", disk=self._disk)
            self._waiting.pause(self._waiting.poll_s)
        if job is None and self._waiting.until(lambda: not self._domain.isActive(), GOING_S):
            return  # QEMU ends its jobs, and then itself: the caller sees a machine that is off
        self._end()
        raise _failure(f"copying into {self._what} ended", reason)

    @property
    def _what(self) -> str:
        return f"{self._disk} of {self._domain.name()}"

    def _start(self) -> dict[str, Any]:
        # Not finalized by itself: it stops when all is copied. Not ended by an error, so that the error can be read: a job
        # that has ended must be dismissed at once, see fabric/unlisted.py.
        return {"job-id": self._id, "device": self._node, "auto-finalize": False, "on-error": "stop"}

    def _trouble(self) -> str:
        """Return what the job stopped for, if it did."""
        jobs = self._call("query-block-jobs")
        status = next((job["io-status"] for job in jobs if job["device"] == self._id), "ok")
        return _TROUBLES.get(status, "")

    def _look(self) -> dict[str, Any] | None:
        jobs = self._call("query-jobs")
        return next((job for job in jobs if job["id"] == self._id), None)

    def _end(self) -> None:
        """Have no job: the backing stays in the header, what was copied stays in the image."""
        if self._look() is None:
            return
        with suppress(HypervisorError):  # it is ending by itself
            self._call("job-cancel", {"id": self._id})
        if not self._waiting.until(self._has_ended, _END_S):
            raise TimeoutExceededError(
                f"copying into {self._what} does not end", hint="is the view that it reads served?"
            )

    def _has_ended(self) -> bool:
        return self._look() is None

    def _call(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments or {}})
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(self._domain, text, 0))
        if "error" in answer:
            raise HypervisorError(
                f"QEMU refused {command} for {self._what}: {answer['error'].get('desc')}", disk=self._disk
            )
        return answer["return"]


def flush(domain: Any, name: str, node: str) -> None:
    """Have QEMU write what it keeps in memory of a disk. It answers in words, and with none if all went well."""
    answer = libvirt_qemu.qemuMonitorCommand(
        domain, f"qemu-io {node} flush", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    ).strip()
    if answer:
        raise HypervisorError(f"{name} of {domain.name()} was not flushed: {answer}", disk=name)


def _failure(doing: str, reason: str) -> SecondSiteError:
    if reason == _NO_SPACE:
        return NoSpaceError(f"{doing}: {reason}", hint="free space beside the machine's images")
    return HypervisorError(
        f"{doing} before all was there: {reason}",
        hint="is the view served, and is there space for the whole disk? then try again",
    )
