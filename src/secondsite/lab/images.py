"""Reads disk images for the checkers, with QEMU's own tools and nothing of the product, which the checkers judge.

Any format and any backing chain that qemu-img can open is read, also while a guest writes to it (then the result is of
no single moment, as of any disk that is read while it changes).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from secondsite.lab.tools import run

ReadAt = Callable[[int, int], bytes | bytearray | memoryview]
"""(offset, length in bytes) -> that many bytes."""
Source = Path | str | ReadAt
"""An image's path, an NBD URI such as "nbd+unix:///vda?socket=/run/x", or a function that reads."""

_QCOW2: Final = b"QFI\xfb"


def reader(source: Source, work: Path, length: int) -> ReadAt:
    """Return a function that reads the first `length` bytes of the source; `work` is a folder for temporary files."""
    if not isinstance(source, Path | str):
        return source
    if isinstance(source, Path) and not is_qcow2(source):
        return _file_reader(source)
    copy = Path(tempfile.mkdtemp(dir=work)) / "begin.raw"
    _copy_region(source, 0, length, copy)
    return _file_reader(copy)


@contextmanager
def region_copy(source: Path | str, offset: int, length: int) -> Iterator[Path]:
    """A sparse raw copy of a part of an image (a path or an NBD URI), deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="ss-copy-") as work:
        copy = Path(work) / "region.raw"
        _copy_region(source, offset, length, copy)
        yield copy


def _copy_region(source: Path | str, offset: int, length: int, copy: Path) -> None:
    node = {"driver": "raw", "offset": offset, "size": length, "file": _node(source)}
    # -U: also while a guest holds the image's lock.
    run(["qemu-img", "convert", "-q", "-U", "-O", "raw", f"json:{json.dumps(node)}", str(copy)])


def _node(source: Path | str) -> dict[str, object]:
    """Return QEMU's description of the whole image, as blockdev-add would take it."""
    if isinstance(source, Path):
        file: dict[str, object] = {"driver": "file", "filename": str(source)}
        return {"driver": "qcow2", "file": file} if is_qcow2(source) else file
    uri = urlsplit(source)
    server: dict[str, object] = {"type": "inet", "host": uri.hostname or "", "port": str(uri.port or 10809)}
    if uri.scheme == "nbd+unix":
        server = {"type": "unix", "path": parse_qs(uri.query)["socket"][0]}
    return {"driver": "nbd", "server": server, "export": uri.path.removeprefix("/")}


def is_qcow2(path: Path) -> bool:
    """Whether the file is a qcow2 image."""
    with path.open("rb") as file:
        return file.read(len(_QCOW2)) == _QCOW2


def _file_reader(path: Path) -> ReadAt:
    def read_at(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            # A copy ends with the image's last data; what is behind reads as zeros.
            return file.read(length).ljust(length, b"\0")

    return read_at
