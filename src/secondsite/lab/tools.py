"""Runs the machine's own tools: qemu-img, mke2fs, e2fsck and their kin."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Container
from pathlib import Path
from typing import Final

from secondsite.errors import UnavailableError

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where libvirtd and the file systems' tools lie; an ordinary user's PATH often lacks it."""
_PACKAGES: Final = {
    "libvirtd": "libvirt-daemon",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
}


def find(name: str) -> Path:
    """Return where a tool is; raise UnavailableError, with what to install, if it is missing."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if found is None:
        raise UnavailableError(
            f"{name} is not installed", hint=f"install the package {_PACKAGES.get(name, name)}"
        )
    return Path(found)


def run(command: list[str], *, allowed: Container[int] = (0,)) -> subprocess.CompletedProcess[str]:
    """Run a tool; raise UnavailableError if it is missing or ends otherwise than allowed."""
    done = subprocess.run(
        [str(find(command[0])), *command[1:]], capture_output=True, text=True, errors="replace"
    )
    if done.returncode not in allowed:
        raise UnavailableError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done
