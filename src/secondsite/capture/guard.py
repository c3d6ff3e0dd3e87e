"""A guard outside of the node: thaws a guest whose node died amid a freeze, also if that node does not come back.

A shell that looks each second whether the marker of the freeze is still there, and when the limit and a little more have passed asks virsh to thaw until
the guest has answered. It costs a process of some hundred KiB for as long as a freeze lasts; a freeze that ends ends it. Where virsh is not
installed there is no guard: then the guest waits for the node.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

_EXTRA_S: Final = 2
_TRIES: Final = 600
_SCRIPT: Final = f"""
waited=0
while [ -e "$2" ] && [ $waited -lt {_TRIES} ]; do
  [ $waited -lt "$1" ] || {{ timeout 10 virsh -q -c "$3" domfsthaw "$4" && rm -f "$2" && exit; }}
  waited=$((waited + 1)); sleep 1
done
"""


class ThawGuard:
    """Guards the freezes of one libvirt machine; `begin` and `end` are called in turn."""

    def __init__(self, uri: str, machine: str) -> None:
        self._uri = uri
        self._machine = machine
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, marker: Path, limit_s: float) -> None:
        """Thaw in a little more than `limit_s`, whatever becomes of this process, unless `marker` is gone by then."""
        if shutil.which("virsh") is None:
            return
        arguments = [str(math.ceil(limit_s) + _EXTRA_S), str(marker.absolute()), self._uri, self._machine]
        with suppress(OSError):  # no process to be had: the node and its watchdog are still there
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "secondsite-thaw", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def end(self) -> None:
        """The guest was thawed."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
