"""What a process of ours that died left on a machine: a backup job, scratch files, servers, a guest that stands still.

A job that nobody reads any more goes on copying what the guest overwrites into its scratch files. When they cannot grow, QEMU
pauses the guest; with the process died the watch that would have let it go on. So leftovers are ended early, not only
when the next snapshot begins.

All is known by its place, the scratch folder of the machine, which belongs to one capture at a time. The order is such
that a cut leaves what the next call knows the work by: the files go last.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

from secondsite.capture.jobs import end_job, is_ours, running_job
from secondsite.capture.layers import end_leftover_servers
from secondsite.capture.machine import Machine, is_active, libvirt_errors
from secondsite.capture.watch import resume_after_abort

FILE_PREFIX: Final = "ss-run-"
"""How the scratch files and sockets of backup jobs are called."""


def end_leftovers(machine: Machine, scratch: Path, job_end_timeout_s: float) -> ET.Element | None:
    """End all that was left; return the description of a backup job that is somebody else's, if one runs.

    A guest that is paused by an I/O error is let go on only if a job of ours was ended or its files are still here:
    otherwise its own storage is the cause, which is not ours to judge. Without leftovers two questions to libvirtd.

    Raises:
        NotFoundError: there is no such machine.
        UnavailableError: libvirtd does not answer. The call may be repeated.
        TimeoutExceededError: the job does not end. Likewise.
    """
    domain = machine.domain()
    files = list(scratch.glob(f"{FILE_PREFIX}*"))
    theirs = None
    if is_active(domain):
        job = running_job(domain)
        ours = job is not None and is_ours(job, scratch)
        if ours:
            end_job(domain, job_end_timeout_s)
            with libvirt_errors("cannot tell whether the backup job has ended"):
                domain.isActive()  # `end_job` takes silence for the end
            files = list(scratch.glob(f"{FILE_PREFIX}*"))
        else:
            theirs = job
        if ours or files:
            with libvirt_errors(f"cannot resume {machine.name}"):
                resume_after_abort(domain)
    end_leftover_servers(scratch)
    for path in files:
        path.unlink(missing_ok=True)
    return theirs
