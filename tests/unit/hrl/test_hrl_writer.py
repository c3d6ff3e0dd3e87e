import io
import struct
from datetime import UTC, datetime
from uuid import UUID

import pytest

from secondsite.errors import InvalidInputError
from secondsite.hrl.reader import NotClosedError, verify_data
from secondsite.hrl.writer import LogWriter
from support.hrl_logs import DISK_SIZE, LOG_ID, PREVIOUS_ID, TIME, build_log, read, reader_of


def writer_on(file, **changes):
    arguments = {"disk_size": DISK_SIZE, "unique_id": LOG_ID, "previous_id": None, "time": TIME, **changes}
    return LogWriter(file, **arguments)


def test_header_fields_stand_where_the_specification_puts_them():
    data = build_log([(512, b"a" * 512)])
    assert data[:8] == b"msctlog\0"
    assert struct.unpack_from("<I", data, 8) == (0x00020000,)
    assert struct.unpack_from("<I", data, 12) == (
        int((TIME - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds()),
    )
    assert struct.unpack_from("<QQ", data, 24) == (DISK_SIZE, DISK_SIZE)
    assert struct.unpack_from("<Q", data, 44) == (len(data),)
    assert struct.unpack_from("<I", data, 56) == (4096,)
    assert UUID(bytes_le=data[60:76]) == LOG_ID
    assert UUID(bytes_le=data[76:92]) == PREVIOUS_ID
    assert struct.unpack_from("<Q", data, 96) == (1,)
    assert not any(data[104:4096])


def test_an_empty_log_is_a_header_and_an_empty_block():
    data = build_log([])
    assert len(data) == 8192
    assert len(read(data).entries) == 0


def test_metadata_follows_its_data():
    data = build_log([(0, b"a" * 512), (4096, b"b" * 1024)])
    assert data[8192:8704] == b"a" * 512
    assert data[8704:9728] == b"b" * 1024
    assert struct.unpack_from("<QI", data, 9728) == (9728 - 4096, 2)
    assert struct.unpack_from("<Q", data, 9760) == (0,)
    assert struct.unpack_from("<Q", data, 9792) == (4096,)


@pytest.mark.parametrize(("entries", "blocks"), [(126, 2), (127, 2), (128, 3), (254, 3), (255, 4)])
def test_a_block_of_4096_bytes_holds_127_entries(entries, blocks):
    data = build_log((i * 512, b"x" * 512) for i in range(entries))
    assert len(data) == 4096 + blocks * 4096 + entries * 512
    assert read(data).entries.offset.tolist() == [i * 512 for i in range(entries)]


@pytest.mark.parametrize("metadata_size", [512, 1024, 8192])
def test_other_metadata_sizes_read_back(metadata_size):
    writes = [(i * 1024, bytes([i % 256]) * 512) for i in range(300)]
    data = build_log(writes, metadata_size=metadata_size)
    entries = read(data).entries
    assert [data[at : at + 512] for at in entries.location] == [payload for _, payload in writes]


def test_version_1_has_no_data_write_id():
    file = io.BytesIO()
    writer = writer_on(file, version=1, data_write_id=LOG_ID)
    writer.close()
    header = read(file.getvalue()).header
    assert header.version == 1
    assert header.data_write_id is None
    assert not any(file.getvalue()[110:126])


def test_header_reads_back_as_it_was_written():
    file = io.BytesIO()
    writer = writer_on(file, previous_id=PREVIOUS_ID, data_write_id=LOG_ID)
    writer.write(0, bytes(512))
    writer.close()
    header = read(file.getvalue()).header
    assert (header.version, header.time, header.modified) == (2, TIME, TIME)
    assert (header.unique_id, header.previous_id, header.data_write_id) == (LOG_ID, PREVIOUS_ID, LOG_ID)
    assert (header.original_size, header.current_size, header.total_entries) == (DISK_SIZE, DISK_SIZE, 1)
    assert header.end == len(file.getvalue())


def test_the_first_log_of_a_chain_has_no_previous_id():
    file = io.BytesIO()
    writer_on(file).close()
    assert read(file.getvalue()).header.previous_id is None


def test_a_log_that_was_not_closed_is_refused():
    file = io.BytesIO()
    writer_on(file).write(0, b"a" * 512)
    with pytest.raises(NotClosedError):
        read(file.getvalue())


def test_data_checksums_hold():
    data = build_log([(0, b"\xff" * 4096), (8192, b"b" * 512)])
    assert verify_data(read(data), reader_of(data)) == 2


def test_memoryviews_and_bytearrays_are_written_as_they_are():
    data = build_log([(0, memoryview(b"m" * 512)), (512, bytearray(b"b" * 512))])
    assert data[8192:9216] == b"m" * 512 + b"b" * 512


def test_length_foretells_the_file():
    file = io.BytesIO()
    writer = writer_on(file)
    writer.write(0, b"a" * 512)
    foretold = writer.length
    assert writer.close() == foretold == len(file.getvalue())
    assert (writer.data_length, writer.entry_count) == (512, 1)


def test_writing_on_an_unbuffered_file_that_takes_less_loses_nothing():
    class Stingy(io.BytesIO):
        def write(self, data):
            return super().write(bytes(data)[:700])

    file = Stingy()
    writer = writer_on(file)
    writer.write(0, b"a" * 2048)
    writer.close()
    assert file.getvalue() == build_log_without_previous([(0, b"a" * 2048)])


def build_log_without_previous(writes):
    file = io.BytesIO()
    writer = writer_on(file)
    for offset, data in writes:
        writer.write(offset, data)
    writer.close()
    return file.getvalue()


@pytest.mark.parametrize(
    ("offset", "size"),
    [(1, 512), (0, 511), (0, 0), (-512, 512), (DISK_SIZE, 512), (DISK_SIZE - 512, 1024)],
)
def test_a_write_that_is_no_range_of_sectors_of_the_disk_is_refused(offset, size):
    writer = writer_on(io.BytesIO())
    with pytest.raises(InvalidInputError):
        writer.write(offset, bytes(size))
    assert writer.data_length == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"metadata_size": 0},
        {"metadata_size": 1000},
        {"disk_size": 0},
        {"disk_size": 513},
        {"time": datetime(1999, 1, 1, tzinfo=UTC)},
        {"time": datetime(2137, 1, 1, tzinfo=UTC)},
        {"time": datetime(2026, 1, 1)},
    ],
)
def test_arguments_out_of_range_are_refused(changes):
    with pytest.raises(InvalidInputError):
        writer_on(io.BytesIO(), **changes)


def test_a_closed_log_takes_nothing_more():
    writer = writer_on(io.BytesIO())
    writer.close()
    with pytest.raises(InvalidInputError):
        writer.write(0, bytes(512))
    with pytest.raises(InvalidInputError):
        writer.close()


def test_a_write_larger_than_an_entry_becomes_several(monkeypatch):
    monkeypatch.setattr("secondsite.hrl.writer.ENTRY_DATA_MAX", 1024)
    data = build_log([(512, b"a" * 2560)])
    assert read(data).entries.length.tolist() == [1024, 1024, 512]
    assert read(data).entries.offset.tolist() == [512, 1536, 2560]
