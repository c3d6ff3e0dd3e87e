"""Change logs in the [MS-HRL] format, lists of zero extents, and the index that overlays them.

Pure: bytes come in through a `ReadAt` and go out through a file object; no clock, no file system, no randomness.
The layout is drawn in docs/design/log-format.md.
"""

from secondsite.hrl.format import Header
from secondsite.hrl.index import BASE, ZERO, ExtentIndex, Piece
from secondsite.hrl.merge import Layer, merge_layers
from secondsite.hrl.reader import Entries, Log, NotClosedError, ReadAt, read_log, verify_data
from secondsite.hrl.writer import LogWriter
from secondsite.hrl.zeros import decode_zeros, encode_zeros

__all__ = [
    "BASE",
    "ZERO",
    "Entries",
    "ExtentIndex",
    "Header",
    "Layer",
    "Log",
    "LogWriter",
    "NotClosedError",
    "Piece",
    "ReadAt",
    "decode_zeros",
    "encode_zeros",
    "merge_layers",
    "read_log",
    "verify_data",
]
