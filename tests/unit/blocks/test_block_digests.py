import numpy as np
import pytest
from blake3 import blake3

from secondsite.blocks import digests
from secondsite.blocks.digests import UNKNOWN, ZERO_DIGEST, block_digests, zero_blocks

KEY = bytes(range(32))


def reference(block):
    return int.from_bytes(blake3(block, key=KEY).digest()[:8], "little")


def test_a_digest_is_the_first_8_bytes_of_keyed_blake3():
    data = b"a" * 4096 + b"b" * 4096
    assert block_digests(data, KEY).tolist() == [reference(b"a" * 4096), reference(b"b" * 4096)]


def test_a_block_of_zeros_has_the_digest_0():
    data = b"a" * 4096 + bytes(4096) + b"c" * 4096
    assert block_digests(data, KEY).tolist() == [reference(b"a" * 4096), ZERO_DIGEST, reference(b"c" * 4096)]


def test_a_short_last_block_is_digested_as_it_is():
    assert block_digests(b"a" * 4096 + b"b" * 700, KEY)[1] == reference(b"b" * 700)
    assert block_digests(bytes(700), KEY).tolist() == [ZERO_DIGEST]


def test_no_data_have_no_digests():
    assert block_digests(b"", KEY).tolist() == []
    assert zero_blocks(b"").tolist() == []


@pytest.mark.parametrize("at", [0, 7, 2048, 4095])
def test_a_single_bit_makes_a_block_not_zero(at):
    data = bytearray(8192)
    data[4096 + at] = 1
    assert zero_blocks(data).tolist() == [True, False]


def test_a_single_byte_makes_a_short_block_not_zero():
    assert zero_blocks(bytes(4096) + bytes(99) + b"\1").tolist() == [True, False]


def test_buffers_at_odd_addresses_are_read():
    data = bytearray(b"x" + bytes(4096) + b"a" * 4096)
    assert block_digests(memoryview(data)[1:], KEY).tolist() == [ZERO_DIGEST, reference(b"a" * 4096)]


def test_another_key_gives_other_digests():
    assert block_digests(b"a" * 4096, KEY)[0] != block_digests(b"a" * 4096, bytes(32))[0]


@pytest.mark.parametrize("hit", [ZERO_DIGEST, UNKNOWN])
def test_a_digest_that_comes_out_reserved_becomes_another(monkeypatch, hit):
    class Unlucky:
        def __init__(self, data, key):
            pass

        def digest(self, length):
            return hit.to_bytes(length, "little")

    monkeypatch.setattr(digests, "blake3", Unlucky)
    assert block_digests(b"a" * 4096, KEY).tolist() == [hit + 2]
    assert block_digests(b"a" * 4096, KEY).dtype == np.uint64
