#!/usr/bin/env python3
"""Runs a command and does for its orphans what an init does: waits for them, so that none stays behind as a zombie.

libvirt starts QEMU as a daemon and waits, when it ends one, until the process is gone from the process table. In a
container whose first process is no init nobody takes it from there: each probe and each shut-down then takes 40 s and
fails. This process adopts what the command's descendants leave (Linux's "child subreaper").

What runs on when the command ends goes to the next ancestor; nothing is killed here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(command: list[str]) -> int:
    """Run the command; return its exit code, or 128 and the number of the signal that ended it."""
    if not command:
        sys.stderr.write("usage: tools/reaping.py COMMAND...\n")
        return 2
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl refuses to make this process a reaper")
    child = os.posix_spawnp(command[0], command, os.environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command, too
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
