"""The backup job that runs on a machine: whose it is, and its end.

A job whose socket lies in our scratch folder is ours, also if another process of ours began it; any other is left alone.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, Final

import libvirt

from secondsite.capture.machine import NO_BACKUP_JOB, libvirt_errors
from secondsite.errors import TimeoutExceededError

JOB_END_TIMEOUT_S: Final = 45.0
"""A guest agent that connects while a job is active makes its end stall for 29 s (measured; libvirt waits for a lock)."""


def running_job(domain: Any) -> ET.Element | None:
    """Return the description of the backup job that runs on the machine, if one does.

    Raises:
        UnavailableError: libvirtd does not answer, so nobody knows.
    """
    with libvirt_errors("cannot ask for the backup job"):
        try:
            return ET.fromstring(domain.backupGetXMLDesc(0))  # noqa: S314
        except libvirt.libvirtError as error:
            if error.get_error_code() == NO_BACKUP_JOB or not domain.isActive():
                return None
            raise


def job_if_known(domain: Any) -> ET.Element | None:
    """As `running_job`, but None as well if libvirtd does not answer.

    For the end of a snapshot: its bytes are not wrong for that, and whoever begins the next one meets the job again.
    """
    try:
        return ET.fromstring(domain.backupGetXMLDesc(0))  # noqa: S314
    except libvirt.libvirtError as error:
        if error.get_error_code() == NO_BACKUP_JOB or not _still_active(domain):
            return None
        with libvirt_errors("cannot ask for the backup job"):
            raise


def is_ours(job: ET.Element, scratch: Path) -> bool:
    """Whether the job's socket lies in our scratch folder."""
    server = job.find("server")
    socket = None if server is None else server.get("socket")
    return socket is not None and Path(socket).parent == scratch


def end_job(domain: Any, timeout_s: float) -> None:
    """Abort the backup job and wait until it is gone; bounded."""
    deadline = time.monotonic() + timeout_s
    try:
        domain.abortJob()
    except libvirt.libvirtError:
        if job_if_known(domain) is not None:
            with libvirt_errors("cannot end the backup job"):
                raise
    pause = 0.002
    while job_if_known(domain) is not None:
        if time.monotonic() > deadline:
            raise TimeoutExceededError(
                "the backup job does not end",
                hint="the next cycle tries again; a guest agent may be starting",
            )
        time.sleep(pause)
        pause = min(0.1, pause * 2)


def _still_active(domain: Any) -> bool:
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError:
        return False
