"""Merging of extents: the client gets few, whole ones, and the disk is not asked for more than is needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secondsite.nbd.disk import FIRST_WINDOW, merged_extents
from support.nbd_wire import MemoryDisk

MIB = 1 << 20


@given(
    st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 59 * 512), st.integers(1, 60 * 512),
    st.integers(1, 10),
)  # fmt: skip
def test_extents_equal_the_states_of_the_bytes(
    blocks: list[bool], offset: int, length: int, limit: int
) -> None:
    content = b"".join((b"\1" if full else b"\0") * 512 for full in blocks)
    offset = min(offset, len(content) - 1)
    length = min(length, len(content) - offset)
    found = merged_extents(MemoryDisk(content), offset, length, limit)
    assert len(found) <= limit
    at = offset
    for before, extent in zip([None, *found], found, strict=False):
        assert extent.offset == at
        assert before is None or before.zero != extent.zero
        part = content[at : at + extent.length]
        assert part == (b"\0" if extent.zero else b"\1") * extent.length
        at += extent.length
    end = offset + length
    assert at == end or (len(found) == limit and (content[at] == 0) != found[-1].zero)


def test_states_are_merged_over_the_windows() -> None:
    disk = MemoryDisk(bytes(30 * MIB) + b"\1" * MIB, block=4096)
    found = merged_extents(disk, 0, 31 * MIB, 100)
    assert [tuple(extent) for extent in found] == [(0, 30 * MIB, True), (30 * MIB, MIB, False)]


def test_one_extent_of_a_fragmented_disk_does_not_look_at_all_of_it() -> None:
    disk = MemoryDisk((b"\1" * 4096 + bytes(4096)) * 4096, block=4096)
    assert [tuple(extent) for extent in merged_extents(disk, 0, disk.size, 1)] == [(0, 4096, False)]
    assert disk.asked <= FIRST_WINDOW
