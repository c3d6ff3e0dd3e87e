"""Takes the kernel proper out of a distribution's boot image, so that no emulated processor has to.

Knows one packing, LZ4's legacy frame (lz4's lz4_Frame_format.md). Whatever else it meets gives None: the packed image
boots, too, a quarter of a second later.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

_FRAME: Final = struct.pack("<I", 0x184C2102)
_BLOCK: Final = 8 << 20  # what one block unpacks to at most
_ENTRY_NOTES: Final = tuple(struct.pack("<III4s", 4, length, 18, b"Xen\0") for length in (4, 8))


def uncompressed(image: bytes) -> bytes | None:
    """Return the kernel as an ELF file that QEMU can start by its PVH entry, or None if there is none in the image."""
    try:
        lz4 = ctypes.CDLL("liblz4.so.1")  # apt needs it, so each Debian has it
    except OSError:
        return None
    place = image.find(_FRAME)
    if place < 0:
        return None
    kernel = bytearray()
    unpacked = ctypes.create_string_buffer(_BLOCK)
    place += len(_FRAME)
    while place + 4 <= len(image):
        (size,) = struct.unpack_from("<I", image, place)
        block = image[place + 4 : place + 4 + size]
        length = lz4.LZ4_decompress_safe(block, unpacked, len(block), _BLOCK) if block else -1
        if length <= 0:
            break  # what follows the frames: the image's own trailer
        kernel += unpacked.raw[:length]
        place += 4 + size
        if length < _BLOCK:
            break
    return bytes(kernel) if _starts(kernel) else None


def _starts(kernel: bytearray) -> bool:
    """Whether it is a whole ELF file of 64 bits (its section headers come last) with the note of a PVH entry."""
    if not kernel.startswith(b"\x7fELF\x02") or len(kernel) < 64:
        return False
    (headers,), (size, count) = struct.unpack_from("<Q", kernel, 40), struct.unpack_from("<HH", kernel, 58)
    return headers + size * count <= len(kernel) and any(note in kernel for note in _ENTRY_NOTES)
