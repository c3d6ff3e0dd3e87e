"""Writes an initramfs: a cpio archive in the kernel's "newc" format, uncompressed, of files with fixed times.

Uncompressed since the emulated processor would take longer to unpack it than it takes to read. The same content gives
the same bytes. Needs no root: the archive names owners itself, and devices come from devtmpfs.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the archive: its content (a link's target for a link) and its mode with the file type."""

    mode: int
    content: bytes = b""


def folder() -> Entry:
    """A folder."""
    return Entry(stat.S_IFDIR | 0o755)


def program(content: bytes) -> Entry:
    """An executable file."""
    return Entry(stat.S_IFREG | 0o755, content)


def link(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def archive(entries: Mapping[str, Entry]) -> bytes:
    """Return the archive. Folders must stand before what is in them."""
    out = bytearray()
    for number, (name, entry) in enumerate(entries.items(), start=1):
        out += _member(number, name, entry)
    out += _member(0, "TRAILER!!!", Entry(0))
    return bytes(out)


def _member(number: int, name: str, entry: Entry) -> bytes:
    # magic, then 8 hexadecimal digits each: inode, mode, uid, gid, links, time, size, device major and minor, the same
    # of a device file, length of the name with its NUL, checksum (0 in this format). Name and content are padded to 4.
    encoded = name.encode() + b"\0"
    fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
