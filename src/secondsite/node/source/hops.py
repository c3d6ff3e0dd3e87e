"""What waits at the source while a cycle runs: bytes that nobody at the other side has acknowledged, and the link's rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def hops(progress: Mapping[str, Any] | None, spool: Path) -> dict[str, Any] | None:
    """Return the hops of a running cycle, or None between cycles: what has changed since, only the next one finds out.

    Not acknowledged is what is still to be read of the disk that is read now (at most so much is shipped of it), and
    the parts in the spool, which go from there when they have arrived.
    """
    if progress is None:
        return None
    total, done = progress.get("total_bytes"), progress.get("bytes")
    to_read = max(0, total - done) if isinstance(total, int) and isinstance(done, int) else 0
    waiting = to_read + _spooled(spool)
    rate = progress.get("rate") or 0
    return {
        "source": {"bytes": waiting, "eta_s": round(waiting / rate, 1) if rate else None},
        "link": {"rate": rate},
    }


def _spooled(spool: Path) -> int:
    size = 0
    try:
        for path in spool.iterdir():
            try:
                size += path.stat().st_size
            except FileNotFoundError:  # sent in between
                continue
    except OSError:  # none yet, or it cannot be read: the report tells what is known
        return size
    return size
