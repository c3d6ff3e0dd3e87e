"""Waits for an answer as long as the question is still leaving.

The kernel takes megabytes from us at once and needs minutes to bring them over a thin line; a time-out that begins when it has taken them ends
every transfer there, again and again. Promises: as long as the peer's side acknowledges bytes, nobody is given up; once nothing moves for
`timeout_s`, the wait ends. It does not read.
"""

from __future__ import annotations

import fcntl
import select
import ssl
import struct
import termios


def wait_for_answer(sock: ssl.SSLSocket, timeout_s: float) -> None:
    """Return when there is something to read, or raise TimeoutError after `timeout_s` in which nothing left and nothing came."""
    left = _unacknowledged(sock)
    readable = select.poll()  # not select(): a node may hold more than 1024 descriptors
    readable.register(sock, select.POLLIN)
    while not sock.pending() and not readable.poll(timeout_s * 1000):
        now = _unacknowledged(sock)
        if now >= left:
            raise TimeoutError("timed out")
        left = now


def _unacknowledged(sock: ssl.SSLSocket) -> int:
    """Bytes that the kernel still holds for the peer, sent or not (tcp(7), SIOCOUTQ, which is TIOCOUTQ)."""
    found: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return found
