"""Judges the ext4 file system on a copy of a lab guest's disk: as it stands, after journal replay, and file by file.

Works on a copy that it deletes again. Independent of the product, as `secondsite.lab.records` is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from secondsite.lab.guest.layout import BLOCK, LABEL_OFFSET, RECORDS_OFFSET, Layout
from secondsite.lab.images import reader, region_copy
from secondsite.lab.tools import run

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_CLEAN: Final = 0
_FINDINGS: Final = range(16)
"""e2fsck: 0 clean, 1 repaired, 4 left unrepaired, 8 beyond its means; from 16 on it was not even tried."""


@dataclass(frozen=True, slots=True)
class FileSystemCheck:
    """What was found. A file system that was cut off needs its journal replayed; only what is wrong then is a problem."""

    ok: bool
    needed_recovery: bool
    """Whether the journal held something: no after a clean unmount or a freeze, mostly yes after a crash."""
    files: int
    """How many of the workload's files there are; each was found whole, unless a problem says otherwise."""
    problems: tuple[str, ...]


def check_filesystem(image: Path | str) -> FileSystemCheck:
    """Judge the file system on a disk of the guest; `image` is a path (raw or qcow2) or an NBD URI."""
    with tempfile.TemporaryDirectory(prefix="ss-label-") as work:
        layout = Layout.parse(bytes(reader(image, Path(work), RECORDS_OFFSET)(LABEL_OFFSET, BLOCK)))
    # A copy of the file system alone: e2fsck takes an offset, but forgets it when it has replayed the journal.
    with region_copy(image, layout.file_system_offset, layout.file_system_length) as copy:
        recovery = _needs_recovery(copy)
        if recovery:
            # What the journal mends is no problem: it is what a crash leaves.
            run(["e2fsck", "-p", "-E", "journal_only", str(copy)], allowed=_FINDINGS)
        problems = _findings(["e2fsck", "-f", "-n", str(copy)])
        files, damaged = _check_files(copy)
    problems += damaged
    return FileSystemCheck(not problems, recovery, files, tuple(problems))


def _needs_recovery(path: Path) -> bool:
    # The superblock lies at 1024; s_feature_incompat at 0x60 in it, where 0x4 is EXT3_FEATURE_INCOMPAT_RECOVER.
    with path.open("rb") as file:
        file.seek(1024 + 0x60)
        return bool(int.from_bytes(file.read(4), "little") & 0x4)


def _findings(command: list[str]) -> list[str]:
    done = run(command, allowed=_FINDINGS)
    return (
        []
        if done.returncode == _CLEAN
        else [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][:20]
    )


def _check_files(image: Path) -> tuple[int, list[str]]:
    problems = []
    count = 0
    with _extracted(image) as folder:
        for path in sorted(folder.glob("churn/file-*")):
            count += 1
            if not _is_whole(path):
                problems.append(f"{path.name} is not what was written")
    return count, problems


@contextmanager
def _extracted(image: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ss-files-") as work:
        # rdump tries to give the files their owners; an ordinary user may not, and it does not matter.
        run(["debugfs", "-R", f"rdump /churn {work}", str(image)])
        yield Path(work)


def _is_whole(path: Path) -> bool:
    """Whether a file holds what it says: words counter, count, checksum, then payload (see guest/workload.c)."""
    data = path.read_bytes()
    if len(data) < 64 or len(data) % 8:
        return False
    words = np.frombuffer(data, dtype="<u8").copy()
    checksum, words[2] = words[2], 0
    if int(words[1]) != len(words) or f"file-{int(words[0]) % 64:02}" != path.name:
        return False
    mixed = words + np.arange(len(words), dtype=np.uint64) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return bool(mixed.sum(dtype=np.uint64) == checksum)
