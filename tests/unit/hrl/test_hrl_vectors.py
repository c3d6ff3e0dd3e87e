"""The example that [MS-HRL] prints in its section 3: facts that any implementation must agree with."""

import struct

import numpy as np
import pytest

from secondsite.hrl.format import ENTRY, METADATA_HEADER, entry_checksums, pack_metadata_header

# data length, byte offset, timestamp, entry checksum
ROWS = [
    (4096, 3626340352, 539842382, 4294966639),
    (4096, 3626344448, 539842382, 4294966623),
    (8192, 3626348544, 539842382, 4294966591),
    (4096, 3628871680, 539842382, 4294966696),
    (4096, 3626414080, 539842382, 4294966606),
    (4096, 3628867584, 539842382, 4294966712),
    (4096, 10188185600, 539842382, 4294966776),
    (4096, 3793489920, 539842382, 4294966766),
    (8192, 3737305088, 539842382, 4294966412),
    (31232, 3673764352, 539842382, 4294966413),
    (31232, 3673733120, 539842382, 4294966280),
    (512, 3676929536, 539842382, 4294966664),
    (16384, 3774267392, 539842382, 4294966326),
    (512, 139058688, 539842382, 4294966747),
    (512, 138656768, 539842382, 4294966787),
    (1024, 135266304, 539842382, 4294967024),
    (4096, 3760070656, 539842381, 4294966751),
    (12288, 3699957760, 539842381, 4294966425),
    (4096, 7792652288, 539842381, 4294966594),
    (2048, 147937280, 539842381, 4294966740),
    (2048, 139466752, 539842381, 4294966933),
    (4096, 8026886144, 539842381, 4294966558),
]


@pytest.mark.parametrize(("length", "offset", "timestamp", "expected"), ROWS)
def test_entry_checksum_is_that_of_the_specification(length, offset, timestamp, expected):
    raw = struct.pack("<QIIIBIB6x", offset, 0, length, timestamp, 1, 0, 0)
    assert entry_checksums(np.frombuffer(raw, ENTRY)).tolist() == [expected]


def test_an_entry_and_a_metadata_header_have_32_bytes():
    assert ENTRY.itemsize == 32
    assert METADATA_HEADER.size == 32


def test_metadata_header_checksum_is_that_of_the_specification():
    # The example's second block stands at 328192 and holds 58 entries; its sum only comes out right with the
    # distance between the starts of both blocks, which settles what "relative" means.
    header = pack_metadata_header(328192 - 4096, 58)
    assert METADATA_HEADER.unpack(header) == (324096, 58, 4294966991)


def test_checksum_of_an_empty_metadata_header_is_all_ones():
    assert METADATA_HEADER.unpack(pack_metadata_header(0, 0)) == (0, 0, 0xFFFFFFFF)
