"""Persistent dirty bitmaps of qcow2 images that no machine has open, through qemu-img.

An image's format is always named, never guessed: a guest may write what it likes into a raw disk, also a header.

A bitmap that QEMU could not store (it was killed) is missing or marked "in use": then nobody knows what changed.
libvirt keeps every bitmap recording until its checkpoint is deleted, so one that does not record ("auto") was
tampered with, and is as good as lost.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secondsite.capture.port import is_ours
from secondsite.errors import ConflictError, NotFoundError, UnavailableError, UnsupportedError

QCOW2: Final = "qcow2"
RAW: Final = "raw"
_TIMEOUT_S: Final = 60.0
_OLD_QCOW2: Final = "qcow2 v2 files"
"""In the message that QEMU and qemu-img give for an image that cannot keep bitmaps."""
_OLD_QCOW2_HINT: Final = (
    "shut the machine down and bring the image to version 3: qemu-img amend -o compat=1.1"
)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What one layer is. `bitmaps` maps names to flags; `backing` is the next layer if it is a file.

    backing_format: as the header names it; None if it names none (then QEMU guesses, and so do we).
    """

    path: Path
    format: str
    size: int
    bitmaps: dict[str, frozenset[str]]
    backing: Path | None
    has_backing: bool
    backing_format: str | None = None

    def is_tracking(self, bitmap: str) -> bool:
        """Whether the bitmap is whole and records."""
        flags = self.bitmaps.get(bitmap)
        return flags is not None and "in-use" not in flags and "auto" in flags


def image_info(path: Path, image_format: str | None = QCOW2) -> ImageInfo:
    """Read an image's header; it may be in use. `image_format` None: guess it.

    Raises:
        NotFoundError: no such file.
        UnavailableError: qemu-img cannot read it, or it is of another format.
    """
    if not path.exists():
        raise NotFoundError(f"no such image: {path}", path=str(path))
    if image_format == RAW:
        return ImageInfo(path, RAW, raw_size(path), {}, None, has_backing=False)
    form = [] if image_format is None else ["-f", image_format]
    document: dict[str, Any] = json.loads(
        _qemu_img("info", "--force-share", *form, "--output=json", str(path.absolute()))
    )
    specific = document.get("format-specific", {}).get("data", {})
    backing = document.get("full-backing-filename") or document.get("backing-filename")
    file = None
    if isinstance(backing, str) and "://" not in backing and not backing.startswith(("json:", "nbd:")):
        file = (path.parent / backing).absolute()
    return ImageInfo(
        path=path,
        format=str(document["format"]),
        size=int(document["virtual-size"]),
        bitmaps={entry["name"]: frozenset(entry["flags"]) for entry in specific.get("bitmaps") or []},
        backing=file,
        has_backing=backing is not None,
        backing_format=document.get("backing-filename-format"),
    )


def raw_size(path: Path) -> int:
    """Return the size of a raw image in bytes: a file's, or a block device's, which `stat` does not tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"no such image: {path}", path=str(path)) from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be opened: {error.strerror}", path=str(path)) from error
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def add_bitmap(image: Path, name: str) -> None:
    """Make an empty bitmap that records from the image's next write on. One that exists and records is kept.

    Raises:
        UnsupportedError: the image is no qcow2 of version 3.
        ConflictError: the image is open elsewhere, or a broken bitmap of this name exists.
    """
    info = image_info(image, None)
    if info.format != QCOW2:
        raise UnsupportedError(f"{image.name} is {info.format}: only qcow2 keeps bitmaps", path=str(image))
    if name in info.bitmaps:
        if info.is_tracking(name):
            return
        raise ConflictError(f"{image.name} has a broken bitmap {name}", path=str(image))
    _qemu_img("bitmap", "--add", "-f", "qcow2", str(image.absolute()), name)


def remove_bitmap(image: Path, name: str) -> None:
    """Remove a bitmap, broken or not. One that does not exist is no error.

    Raises:
        ConflictError: the image is open elsewhere.
    """
    if name in image_info(image).bitmaps:
        _qemu_img("bitmap", "--remove", "-f", "qcow2", str(image.absolute()), name)


def unsupported_image(message: str) -> UnsupportedError | None:
    """Return the error for a message that says that an image cannot keep bitmaps, else None."""
    return UnsupportedError(message, hint=_OLD_QCOW2_HINT) if _OLD_QCOW2 in message else None


def our_bitmaps(info: ImageInfo) -> list[str]:
    """Return the names of the bitmaps that Second Site made."""
    return [name for name in info.bitmaps if is_ours(name)]


def _qemu_img(*arguments: str) -> str:
    try:
        done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise NotFoundError("qemu-img is not installed", hint="install qemu-utils") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"qemu-img {arguments[0]} does not end") from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip()
    if "lock" in said and "Failed to get" in said:
        raise ConflictError(f"the image is open elsewhere: {said}", hint="try again when it is closed")
    if (too_old := unsupported_image(said)) is not None:
        raise too_old
    raise UnavailableError(f"qemu-img {arguments[0]} failed: {said}")
