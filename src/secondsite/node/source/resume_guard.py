"""A guard outside of the node: resumes machines that a node suspended and then died, also if it does not come back.

A shell that waits for the end of a pipe whose other end only the node holds. When the node is gone, however it ended, it asks virsh to resume
what the notes of stand-stills name (see barrier.py), until the hypervisor has answered. Without a note there is nothing to do, and it
ends. Where virsh is not installed there is no guard: then machines wait for the node.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

_TRIES: Final = 600
_END_S: Final = 5.0
_UUID: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SCRIPT: Final = f"""
uri=$1 folder=$2
cat > /dev/null
for note in "$folder"/*.paused; do
  tries=0
  while [ -e "$note" ] && [ $tries -lt {_TRIES} ]; do
    left=
    for vm in $(grep -oE '{_UUID}' "$note"); do
      state=$(timeout 10 virsh -q -c "$uri" domstate "$vm") || {{ left=1; continue; }}
      [ "$state" = paused ] || continue
      timeout 10 virsh -q -c "$uri" resume "$vm" || left=1
    done
    [ -n "$left" ] || {{ rm -f "$note"; break; }}
    tries=$((tries + 1)); sleep 1
  done
done
"""


class ResumeGuard:
    """Guards the stand-stills of one node on the hypervisor `uri`. For one thread at a time."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, folder: Path) -> None:
        """From now on, resume what the notes in `folder` name if this process ends. Cheap when it watches already."""
        if (self._process is not None and self._process.poll() is None) or shutil.which("virsh") is None:
            return
        with suppress(OSError):  # no process to be had: the watchdog and the next start are still there
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "secondsite-resume", self._uri, str(folder.absolute())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def close(self) -> None:
        """The node ends. What is owed by then the guard goes on trying."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
