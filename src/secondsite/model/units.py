"""Byte units and the sizes that every part of the data plane agrees on."""

from __future__ import annotations

from typing import Final, TypeAlias

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

SECTOR: Final = 512
"""Smallest unit of a log entry ([MS-HRL]: data is a multiple of a sector)."""
BLOCK: Final = 4 * KIB
"""Unit of digests and of the filter that drops what did not change."""
DIGEST_KEY_LENGTH: Final = 32
"""Bytes of the key of an item's digests (BLAKE3's)."""
PART_DATA_MAX: Final = 64 * MIB
"""Most data bytes in one log file (= one part on the wire)."""

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are passed on without a copy (`collections.abc.Buffer` exists only from Python 3.12 on)."""
