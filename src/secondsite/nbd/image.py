"""Disk images through qemu-nbd, and one qemu-nbd per image for all of this node's processes.

qemu lets one process open an image for writing. The journal's writer, a view and a stand-alone command may all
need the same base, so they share one detached qemu-nbd under a name that each of them can compute: `shared_image`
finds it or starts it, under a lock, in a folder that they agree on.

In that folder, for each image (`<id>` is a digest of its real path): `<id>.lock`, `<id>.sock`, `<id>.sock.pid`,
`<id>.sock.log`, and `<id>.json`, which says what is served. As long as `<id>.json` exists the image is meant to be served, and a
server that died is started again by whoever misses it. `stop_shared` removes it: then nobody does.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from secondsite.durable import FileLock, fsync_file, write_atomic
from secondsite.errors import CorruptError, NotFoundError, UnavailableError
from secondsite.journal.base import Base, BaseSpec, OpenBase, open_raw_base
from secondsite.nbd.image_base import ImageBase
from secondsite.nbd.qemu_nbd import ImageServer, answers

__all__ = ["ImageBase", "ImageServer", "base_opener", "is_served", "shared_image", "stop_shared"]

LOCK_TIMEOUT_S: Final = 120.0
"""Longer than a start and a stop of a server together, so waiting for another process succeeds."""
ANSWER_TIMEOUT_S: Final = 10.0
RESIZE_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Served:
    """What `<id>.json` holds. The inode tells an image from another one that was renamed over it."""

    path: str
    format: str
    writable: bool
    device: int
    inode: int


class _Shared:
    """The well-known names of one image."""

    def __init__(self, path: Path, run_dir: Path) -> None:
        self.path = path.resolve()
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = hashlib.blake2b(bytes(self.path), digest_size=8).hexdigest()
        self.socket = run_dir / f"{name}.sock"
        self.state = run_dir / f"{name}.json"
        self.lock = run_dir / f"{name}.lock"

    def served(self) -> _Served | None:
        try:
            return _Served(**json.loads(self.state.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            return None  # of another version: as good as none, the server is replaced

    def server(self, image_format: str, *, writable: bool) -> ImageServer:
        return ImageServer(self.path, image_format, self.socket, writable)

    def ensure(self, image_format: str, *, writable: bool) -> None:
        """Make the image served. The caller holds the lock."""
        try:
            status = self.path.stat()
        except FileNotFoundError as error:
            raise NotFoundError(f"no such image: {self.path}", path=str(self.path)) from error
        served = self.served()
        same = served is not None and (served.device, served.inode, served.format) == (
            status.st_dev,
            status.st_ino,
            image_format,
        )
        enough = served is not None and (served.writable or not writable)
        server = self.server(image_format, writable=writable)
        if server.process is not None:
            if same and enough and answers(self.socket, ANSWER_TIMEOUT_S):
                return
            server.stop()  # its clients connect again when the new one is up
        elif same and served is not None and served.writable and not writable:
            # It died. Others may have it open for writing, so it comes back as it was.
            server = self.server(image_format, writable=True)
        new = _Served(str(self.path), image_format, server.writable, status.st_dev, status.st_ino)
        write_atomic(self.state, json.dumps(asdict(new)).encode())
        try:
            server.start()
        except BaseException:
            if served is None:
                self.state.unlink(missing_ok=True)
            raise

    def revive(self, image_format: str, *, writable: bool) -> None:
        """Start the server again unless it was stopped on purpose."""
        with FileLock(self.lock, timeout_s=LOCK_TIMEOUT_S):
            if self.served() is None:
                raise UnavailableError(f"the server of {self.path} was stopped", path=str(self.path))
            self.ensure(image_format, writable=writable)


def shared_image(
    path: Path,
    format: str,  # noqa: A002
    run_dir: Path,
    writable: bool,
) -> ImageBase:
    """Return the image through the one qemu-nbd that serves it, which is started if none runs.

    A server that is read-only is replaced when `writable` is asked for; its other clients connect again.

    Raises:
        NotFoundError: no such image.
        ConflictError: another program has the image open, such as a running machine.
        UnavailableError, TimeoutExceededError: qemu-nbd does not start.
    """
    shared = _Shared(path, run_dir)
    with FileLock(shared.lock, timeout_s=LOCK_TIMEOUT_S):
        shared.ensure(format, writable=writable)
    return ImageBase(
        shared.socket, writable=writable, revive=lambda: shared.revive(format, writable=writable)
    )


def stop_shared(path: Path, run_dir: Path) -> None:
    """End the server of `path`, so that another program may open the image. Safe to repeat.

    Returns when the image is closed. Bases that are still open get UnavailableError and do not start it again.
    """
    shared = _Shared(path, run_dir)
    with FileLock(shared.lock, timeout_s=LOCK_TIMEOUT_S):
        shared.state.unlink(missing_ok=True)
        shared.server("raw", writable=False).stop()


def is_served(path: Path, run_dir: Path) -> bool:
    """Whether a shared qemu-nbd of `run_dir` serves the image now."""
    if not run_dir.is_dir():
        return False
    shared = _Shared(path, run_dir)
    return shared.served() is not None and answers(shared.socket, ANSWER_TIMEOUT_S)


def base_opener(run_dir: Path) -> OpenBase:
    """Return the factory of bases for `Journal.open`: raw files directly, images through their shared qemu-nbd.

    Every process that opens journals of one node is given the same `run_dir`.
    """

    def open_base(spec: BaseSpec, writable: bool) -> Base:
        if spec.kind == "raw":
            return open_raw_base(spec, writable)
        image = shared_image(spec.path, spec.format, run_dir, writable)
        if spec.grown_from is not None and image.size == spec.grown_from:
            if not writable:
                return image
            image.close()
            _enlarge(spec, run_dir)
            image = shared_image(spec.path, spec.format, run_dir, writable)
        if image.size != spec.size:
            size = image.size
            image.close()
            raise CorruptError(
                f"the base {spec.path.name} has {size} bytes instead of {spec.size}", path=str(spec.path)
            )
        return image

    return open_base


def _enlarge(spec: BaseSpec, run_dir: Path) -> None:
    stop_shared(spec.path, run_dir)
    command = ["qemu-img", "resize", "-q", "-f", spec.format, str(spec.path.absolute()), str(spec.size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RESIZE_TIMEOUT_S)
    if done.returncode:
        raise UnavailableError(
            f"{spec.path.name} cannot be enlarged: {done.stderr.strip()}", path=str(spec.path)
        )
    fsync_file(spec.path)
