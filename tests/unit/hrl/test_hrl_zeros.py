import struct

import numpy as np
import pytest

from secondsite.errors import CorruptError, InvalidInputError, UnsupportedError
from secondsite.hrl.zeros import decode_zeros, encode_zeros


def test_layout_is_header_and_pairs():
    data = encode_zeros([(4096, 8192)])
    assert data == b"SSZEROS\n" + struct.pack("<IIQQQ", 1, 0, 1, 4096, 8192)


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ([], []),
        ([(8192, 512), (0, 512)], [[0, 512], [8192, 512]]),
        ([(0, 512), (512, 512)], [[0, 1024]]),
        ([(0, 4096), (512, 512), (1024, 8192)], [[0, 9216]]),
        ([(0, 4096), (512, 512), (8192, 512)], [[0, 4096], [8192, 512]]),
        ([(0, 512), (4096, 0)], [[0, 512]]),
    ],
)
def test_extents_come_back_ascending_and_joined(extents, expected):
    assert decode_zeros(encode_zeros(extents)).tolist() == expected


def test_an_array_is_encoded_like_the_tuples():
    array = np.array([[0, 512], [8192, 4096]])
    assert encode_zeros(array) == encode_zeros([(0, 512), (8192, 4096)])


@pytest.mark.parametrize("extent", [(1, 512), (0, 100), (-512, 512), (1 << 62, 512), (1 << 70, 512)])
def test_extents_that_are_no_sectors_are_not_encoded(extent):
    with pytest.raises(InvalidInputError):
        encode_zeros([extent])


def raw(*pairs, version=1, reserved=0, count=None):
    numbers = [number for pair in pairs for number in pair]
    header = struct.pack("<8sIIQ", b"SSZEROS\n", version, reserved, len(pairs) if count is None else count)
    return header + struct.pack(f"<{len(numbers)}Q", *numbers)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SSZEROS\n",
        b"x" * 24,
        raw((0, 512), count=2),
        raw((0, 512), count=0),
        raw(count=1 << 60),
        raw((0, 512)) + b"x",
        raw((0, 512), reserved=1),
        raw((0, 0)),
        raw((1, 512)),
        raw((0, 511)),
        raw((1 << 63, 512)),
        raw((0, 1 << 63)),
        raw((512, 512), (0, 512)),
        raw((0, 1024), (512, 512)),
        raw((0, 512), (512, 512)),
    ],
)
def test_anything_but_the_one_encoding_is_refused(data):
    with pytest.raises(CorruptError):
        decode_zeros(data)


def test_another_version_is_refused_as_such():
    with pytest.raises(UnsupportedError):
        decode_zeros(raw((0, 512), version=2))
