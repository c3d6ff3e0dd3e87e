import io
from contextlib import contextmanager

import numpy as np
import pytest

from secondsite.errors import CorruptError, InvalidInputError
from secondsite.hrl.merge import ENTRY_TARGET, Layer, merge_layers
from secondsite.hrl.reader import NotClosedError
from secondsite.hrl.writer import LogWriter
from support.hrl_logs import DISK_SIZE, LOG_ID, TIME, apply, build_log, read, reader_of


class Sink:
    """Collects the logs that a merge writes."""

    def __init__(self, disk_size=DISK_SIZE):
        self.files = []
        self.failed = 0
        self.disk_size = disk_size

    @contextmanager
    def __call__(self):
        file = io.BytesIO()
        self.files.append(file)
        try:
            yield LogWriter(file, disk_size=self.disk_size, unique_id=LOG_ID, previous_id=None, time=TIME)
        except BaseException:
            self.failed += 1
            raise

    @property
    def logs(self):
        return [file.getvalue() for file in self.files]


def layer(*logs, zeros=None):
    return Layer(
        [(read(data), reader_of(data)) for data in logs],
        None if zeros is None else np.array(zeros, np.int64).reshape(-1, 2),
    )


def entries(data):
    found = read(data).entries
    return list(zip(found.offset.tolist(), found.length.tolist(), strict=True))


def test_what_a_later_layer_hides_is_not_copied():
    sink = Sink()
    old, new = build_log([(0, b"a" * 4096)]), build_log([(1024, b"b" * 1024)])
    zeros = merge_layers([layer(old), layer(new)], sink)
    disk = bytearray(DISK_SIZE)
    apply(sink.logs[0], disk)
    assert disk[:4096] == b"a" * 1024 + b"b" * 1024 + b"a" * 2048
    assert len(sink.logs) == 1
    assert read(sink.logs[0]).data_length == 4096
    assert zeros.shape == (0, 2)


def test_zeros_hide_older_data_and_newer_data_hide_zeros():
    sink = Sink()
    zeros = merge_layers(
        [
            layer(build_log([(0, b"a" * 4096)])),
            layer(zeros=[[512, 2048]]),
            layer(build_log([(1024, b"c" * 512)])),
        ],
        sink,
    )
    assert zeros.tolist() == [[512, 512], [1536, 1024]]
    assert entries(sink.logs[0]) == [(0, 512), (1024, 512), (2560, 1536)]


def test_neighbours_from_several_logs_become_one_entry():
    sink = Sink()
    logs = [build_log([(i * 512, bytes([i]) * 512)]) for i in range(8)]
    merge_layers([layer(*logs)], sink)
    assert entries(sink.logs[0]) == [(0, 4096)]


def test_logs_hold_no_more_data_than_asked():
    sink = Sink()
    merge_layers([layer(build_log([(0, b"a" * 5120), (8192, b"b" * 2048)]))], sink, data_max=2048)
    assert [read(data).data_length for data in sink.logs] == [2048, 2048, 2048, 1024]
    assert [entries(data) for data in sink.logs] == [
        [(0, 2048)],
        [(2048, 2048)],
        [(4096, 1024), (8192, 1024)],
        [(9216, 1024)],
    ]


def test_entries_are_cut_to_a_size_that_is_read_at_once():
    size = 2 * ENTRY_TARGET + 512
    sink = Sink(disk_size=4 * ENTRY_TARGET)
    merge_layers([layer(build_log([(0, b"a" * size)], disk_size=4 * ENTRY_TARGET))], sink)
    assert entries(sink.logs[0]) == [(0, ENTRY_TARGET), (ENTRY_TARGET, ENTRY_TARGET), (2 * ENTRY_TARGET, 512)]


def test_no_log_is_opened_when_no_data_survive():
    sink = Sink()
    assert merge_layers([layer(build_log([(0, b"a" * 512)])), layer(zeros=[[0, 4096]])], sink).tolist() == [
        [0, 4096]
    ]
    assert merge_layers([], sink).tolist() == []
    assert sink.files == []


def test_a_log_that_ends_early_leaves_nothing_that_reads_as_a_log():
    sink = Sink()
    data = build_log([(0, b"a" * 512), (4096, b"b" * 512)])
    short = Layer([(read(data), reader_of(data[:8704]))])
    with pytest.raises(CorruptError):
        merge_layers([short], sink)
    assert sink.failed == len(sink.files)
    for log in sink.logs:
        with pytest.raises(NotClosedError):
            read(log)


def test_a_log_whose_last_write_fails_is_left_to_its_factory_at_once():
    """The last entry is written when all is done; the open file stayed open until it was collected, with data in its buffer."""

    class Full(io.BytesIO):
        def write(self, data):
            if len(data) == 4096 and bytes(data) == b"z" * 4096:
                raise OSError(28, "no space")
            return super().write(data)

    class Disk(Sink):
        @contextmanager
        def __call__(self):
            file = Full()
            self.files.append(file)
            try:
                yield LogWriter(file, disk_size=DISK_SIZE, unique_id=LOG_ID, previous_id=None, time=TIME)
            except BaseException:
                self.failed += 1
                raise

    sink = Disk()
    with pytest.raises(OSError, match="no space") as caught:
        merge_layers([layer(build_log([(0, b"z" * 4096)]))], sink)
    assert caught.value is not None
    assert (len(sink.files), sink.failed) == (1, 1)


@pytest.mark.parametrize("data_max", [0, 511, 1000])
def test_a_log_size_that_is_no_multiple_of_a_sector_is_refused(data_max):
    with pytest.raises(InvalidInputError):
        merge_layers([], Sink(), data_max=data_max)
