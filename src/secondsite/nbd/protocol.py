"""Constants and layouts of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md). Pure.

All integers are big-endian. What a client sends:

    client flags        u32
    option              u64 IHAVEOPT | u32 option | u32 length | data
    request             u32 magic | u16 flags | u16 type | u64 cookie | u64 offset | u32 length

What the server answers:

    greeting            u64 NBDMAGIC | u64 IHAVEOPT | u16 handshake flags
    option reply        u64 magic | u32 option | u32 reply type | u32 length | data
    simple reply        u32 magic | u32 error | u64 cookie | data (reads only)
    structured chunk    u32 magic | u16 flags | u16 type | u64 cookie | u32 length | payload
"""

from __future__ import annotations

import struct
from typing import Final

NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

# Handshake flags (server) and client flags: the bits are the same.
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

# Transmission flags
FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8

OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_STARTTLS: Final = 5
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERR_UNSUP: Final = (1 << 31) + 1
REP_ERR_INVALID: Final = (1 << 31) + 3
REP_ERR_UNKNOWN: Final = (1 << 31) + 6
REP_ERR_TOO_BIG: Final = (1 << 31) + 9

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_BLOCK_SIZE: Final = 3

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

CHUNK_FLAG_DONE: Final = 1 << 0
CHUNK_NONE: Final = 0
CHUNK_OFFSET_DATA: Final = 1
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR: Final = (1 << 15) + 1
CHUNK_ERROR_OFFSET: Final = (1 << 15) + 2

STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1

# Errors on the wire have their own numbers; these equal Linux's.
EPERM: Final = 1
EIO: Final = 5
EINVAL: Final = 22

BASE_ALLOCATION: Final = "base:allocation"
CONTEXT_ID: Final = 1
"""The id under which base:allocation is answered; any number that is not 0 would do."""

NAME_MAX: Final = 4096
"""Longest name that the protocol allows, in bytes."""
REQUEST_MAX: Final = 32 << 20
"""Longest read, advertised as the maximum block size. A client must assume this much without being told."""

GREETING: Final = struct.Struct(">QQH")
CLIENT_FLAGS: Final = struct.Struct(">I")
OPTION: Final = struct.Struct(">QII")
OPTION_REPLY: Final = struct.Struct(">QIII")
INFO_EXPORT_REPLY: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE_REPLY: Final = struct.Struct(">HIII")
EXPORT_NAME_REPLY: Final = struct.Struct(">QH")
REQUEST: Final = struct.Struct(">IHHQQI")
SIMPLE_REPLY: Final = struct.Struct(">IIQ")
CHUNK: Final = struct.Struct(">IHHQI")
CHUNK_DATA: Final = struct.Struct(">IHHQIQ")
"""The chunk header with the offset that begins an OFFSET_DATA payload."""
ERROR_PAYLOAD: Final = struct.Struct(">IH")
STATUS_EXTENT: Final = struct.Struct(">II")
U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
