"""The old machine's disks, before they become the base of a journal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from secondsite.capture.port import is_ours
from secondsite.errors import UnavailableError
from secondsite.nbd.image import stop_shared


def release_images(paths: Iterable[Path], run: Path) -> None:
    """Remove our dirty bitmaps from the images: what they track has been shipped. Idempotent."""
    for path in paths:
        stop_shared(path, run)  # a retry: the server of the first try holds the image
        for name in bitmaps(path):
            if is_ours(name):
                _qemu_img("bitmap", "--remove", str(path), name)


def bitmaps(path: Path) -> list[str]:
    """Return the names of the persistent bitmaps in a qcow2 image."""
    info = json.loads(_qemu_img("info", "--output=json", str(path)))
    specific = info.get("format-specific", {}).get("data", {})
    return [str(bitmap["name"]) for bitmap in specific.get("bitmaps", [])]


def _qemu_img(*args: str) -> str:
    done = subprocess.run(["qemu-img", *args], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise UnavailableError(
            f"qemu-img {args[0]} failed: {done.stderr.strip()}", hint="is a machine using the image?"
        )
    return done.stdout
