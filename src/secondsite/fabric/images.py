"""qcow2 images: create an overlay on a view, look into one, make one stand alone while its machine is off, delete.

Promises: an overlay exists under its name only when it is whole and durable, with its bitmap in it. Reading never
disturbs a machine that runs (`qemu-img info -U`). What is written as root belongs to the owner of its folder, so that
a hypervisor that is not root may use it.

Standing alone is done by qemu-storage-daemon and its job `block-stream`, which leaves dirty bitmaps as they are.
Rejected: `qemu-img rebase -b ""`, which marks all that it copies as dirty (measured), so that the way back would ship
it; and `qemu-img bitmap --disable` around it, since a crash between would leave tracking off unnoticed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from secondsite.durable import fsync_dir, fsync_file, rename_durable, temporary_path
from secondsite.errors import ConflictError, NoSpaceError, NotFoundError, UnavailableError, UnsupportedError
from secondsite.fabric.port import Cancelled, CancelledError, HypervisorError, NbdBacking, Progress

TOOL_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says of itself. `size` is the virtual one, in bytes."""

    size: int
    format: str
    backing: str | None
    bitmaps: tuple[str, ...]


def nbd_uri(backing: NbdBacking) -> str:
    """Return the URI under which an image's header names a view."""
    return f"nbd+unix:///{quote(backing.export, safe='')}?socket={quote(str(backing.socket), safe='/')}"


def image_info(path: Path) -> ImageInfo:
    """Read an image's header, also while a machine uses it; its backing is not opened. Raises NotFoundError."""
    if not path.exists():
        raise NotFoundError(f"no image {path}", path=str(path))
    document = json.loads(_run(["qemu-img", "info", "-U", "--output=json", str(path)]))
    details = document.get("format-specific", {}).get("data", {})
    return ImageInfo(
        size=document["virtual-size"],
        format=document["format"],
        backing=document.get("backing-filename"),
        bitmaps=tuple(bitmap["name"] for bitmap in details.get("bitmaps") or ()),
    )


def create_overlay(path: Path, *, size: int, backing: NbdBacking, bitmap: str) -> None:
    """See `Fabric.create_overlay`."""
    wanted = ImageInfo(size, "qcow2", nbd_uri(backing), (bitmap,))
    if path.exists():
        found = image_info(path)
        if found != wanted:
            raise ConflictError(
                f"{path} exists and is another image",
                hint="look whose it is; delete it if it is left from something that failed",
                found=str(found),
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", nbd_uri(backing)]
        _run([*create, str(temporary), str(size)])
        _run(["qemu-img", "bitmap", "--add", str(temporary), bitmap])
        _give_to_owner_of_folder(temporary)
        fsync_file(temporary)
        rename_durable(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def delete_images(paths: Sequence[Path]) -> None:
    """Remove files, durably; missing ones are no error. A block device is left as it is: its node is not the disk."""
    for path in paths:
        if not path.is_block_device():
            path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        if folder.exists():
            fsync_dir(folder)


def stream_offline(path: Path, *, progress: Progress, cancelled: Cancelled) -> None:
    """Copy into the image what it still reads from its backing; afterwards it has none. No machine may run on it.

    Cut short (also by a crash) it can be run again: what was copied stays. The tool copies in one run and takes the backing
    out of the header in another: where the copies lie is in its memory until it ends, and a header that reached the disk
    before would make zeros of what is not there yet.
    """
    for last in (False, True):
        _stream(path, progress=progress, cancelled=cancelled, last=last)
        fsync_file(path)


def _stream(path: Path, *, progress: Progress, cancelled: Cancelled, last: bool) -> None:
    """Copy, and drop the backing if this is the `last` run."""
    tool = shutil.which("qemu-storage-daemon")
    if tool is None:
        raise UnsupportedError(
            "qemu-storage-daemon is missing", hint="install QEMU's tools (qemu-system-common)"
        )
    node = {"driver": "qcow2", "node-name": "image", "file": {"driver": "file", "filename": str(path)}}
    # Should this process be killed, the tool ends in order with it and leaves the image unlocked.
    command = [
        "setpriv",
        "--pdeathsig",
        "TERM",
        tool,
        "--chardev",
        "stdio,id=m",
        "--monitor",
        "chardev=m",
        "--blockdev",
        json.dumps(node),
    ]
    with _Monitor(command) as monitor:
        job = {"job-id": "pull", "device": "image", "auto-dismiss": False, "auto-finalize": last}
        monitor.call("block-stream", job)
        done = threading.Event()
        while True:
            (job,) = monitor.call("query-jobs")
            progress(job["current-progress"], job["total-progress"])
            if job["status"] == "concluded":
                break
            if job["status"] == "pending" and not last:
                monitor.call("job-cancel", {"id": "pull"})  # all is copied; the header stays as it is
                _wait_concluded(monitor, done)
                return
            if cancelled():
                monitor.call("job-cancel", {"id": "pull"})
                _wait_concluded(monitor, done)
                raise CancelledError(f"making {path} stand alone was cancelled", path=str(path))
            done.wait(_POLL_S)
        if "error" in job:
            raise _tool_error(f"copying the backing of {path} into it failed: {job['error']}")


def _wait_concluded(monitor: _Monitor, pause: threading.Event) -> None:
    while monitor.call("query-jobs")[0]["status"] != "concluded":
        pause.wait(_POLL_S)


class _Monitor:
    """A qemu-storage-daemon that is spoken to over its standard streams, and that ends in order: bitmaps get stored."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> _Monitor:
        try:
            self._read()  # the greeting
            self.call("qmp_capabilities")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def call(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a command and return its result; events in between are skipped."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are read below
        while True:
            message = self._read()
            if "error" in message:
                raise _tool_error(f"qemu-storage-daemon refused {command}: {message['error'].get('desc')}")
            if "return" in message:
                return message["return"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise _tool_error(f"qemu-storage-daemon ended: {self._process.stderr.read().strip()[-500:]}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _end(self) -> None:
        try:
            # The end of its input does not end it: SIGTERM does, in order.
            self._process.terminate()
            self._process.communicate(timeout=TOOL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def _give_to_owner_of_folder(path: Path) -> None:
    # Folders that we made ourselves, as root, are passed over: what they stand in tells whose the storage is.
    if os.geteuid() == 0:
        folders = [folder.stat() for folder in path.parents]
        owner = next((folder for folder in folders if folder.st_uid != 0), folders[0])
        os.chown(path, owner.st_uid, owner.st_gid)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S)
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"{command[0]} is missing", hint="install QEMU's tools (qemu-utils)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"{command[0]} {command[1]} did not end", hint="is the view it reads served?"
        ) from error
    if done.returncode != 0:
        raise _tool_error(f"{command[0]} {command[1]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _tool_error(message: str) -> HypervisorError | NoSpaceError | UnavailableError:
    if "No space left on device" in message:
        return NoSpaceError(message, hint="free space beside the machine's images")
    if "Failed to connect" in message or "Connection refused" in message:
        return UnavailableError(message, hint="is the view that the image lies on served?")
    return HypervisorError(message)
