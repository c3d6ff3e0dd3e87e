"""The kernel proper out of a boot image."""

from __future__ import annotations

import ctypes
import struct

import pytest

from secondsite.lab.guest.uncompressed import uncompressed

NOTE = struct.pack("<III4s", 4, 8, 18, b"Xen\0")


def elf(length: int, *, note: bytes = NOTE, headers: int | None = None) -> bytes:
    """An ELF header that says where the section headers end, a note, and what is repeated up to the length."""
    content = bytearray((b"text and data " * (length // 14 + 1))[:length])
    content[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", content, 40, length if headers is None else headers)
    struct.pack_into("<HH", content, 58, 0, 0)
    content[100 : 100 + len(note)] = note
    return bytes(content)


def boot_image(kernel: bytes, *, block: int = 8 << 20) -> bytes:
    """What the kernel's build makes: a stub, LZ4's legacy frame, and the length behind it."""
    lz4 = ctypes.CDLL("liblz4.so.1")
    frame = bytearray(struct.pack("<I", 0x184C2102))
    for start in range(0, len(kernel), block):
        piece = kernel[start : start + block]
        packed = ctypes.create_string_buffer(lz4.LZ4_compressBound(len(piece)))
        length = lz4.LZ4_compress_default(piece, packed, len(piece), len(packed))
        frame += struct.pack("<I", length) + packed.raw[:length]
    return b"stub" * 1000 + bytes(frame) + struct.pack("<I", len(kernel))


@pytest.mark.parametrize("length", [5000, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 20 << 20])
def test_a_kernel_of_any_length_comes_out_whole(length: int) -> None:
    kernel = elf(length)
    assert uncompressed(boot_image(kernel)) == kernel


def test_what_is_packed_otherwise_is_left_packed() -> None:
    assert uncompressed(b"stub" * 1000 + b"\x28\xb5\x2f\xfd" + bytes(1000)) is None


def test_what_qemu_could_not_start_is_left_packed() -> None:
    assert uncompressed(boot_image(elf(5000, note=b""))) is None
    assert uncompressed(boot_image(b"no ELF file at all" * 100)) is None


def test_a_kernel_that_is_cut_short_is_left_packed() -> None:
    image = boot_image(elf(20 << 20))
    assert uncompressed(image[: len(image) // 2]) is None
    assert uncompressed(boot_image(elf(5000, headers=5001))) is None
