"""Starting and ending a qemu-nbd for one disk image.

Promises: `start` returns when the server answers, or raises with what qemu-nbd said; the process is detached and
known by a pid file, so it survives us and can be found again; `stop` ends that process and no other, letting it
write back its caches first.

It does not decide who may open an image: qemu's own image locks refuse a second writer, and `start` says so.
"""

from __future__ import annotations

import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from secondsite.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError
from secondsite.nbd.protocol import NBDMAGIC
from secondsite.nbd.socketpath import connect, name_for_child
from secondsite.processes import ProcessRef, find, spawn, terminate, wait_ready

FORMATS: Final = frozenset({"qcow2", "raw", "vmdk", "vhdx", "vpc", "vdi", "qed"})
START_TIMEOUT_S: Final = 30.0
"""Opening a large qcow2 reads its bitmaps; on a busy disk that takes seconds."""
STOP_TIMEOUT_S: Final = 60.0
"""qemu-nbd writes back its caches on SIGTERM; SIGKILL after that loses what was not flushed."""


class ImageServer:
    """A qemu-nbd for `path` on `socket`, as export "". Also a context manager: started, then stopped.

    writable: else the image is opened read-only, which qemu allows several times.
    bitmap: a persistent dirty bitmap of a qcow2, exported as the context qemu:dirty-bitmap:<name>.
    pid_file: by default beside the socket, as is the log.
    """

    def __init__(
        self,
        path: Path,
        format: str,  # noqa: A002  the word of qemu and of our contract
        socket: Path,
        writable: bool,
        bitmap: str | None = None,
        pid_file: Path | None = None,
    ) -> None:
        if format not in FORMATS:
            raise InvalidInputError(f"not an image format: {format!r}", hint=f"one of {sorted(FORMATS)}")
        self.path = path
        self.format = format
        self.socket = socket
        self.writable = writable
        self.bitmap = bitmap
        self.pid_file = socket.with_name(socket.name + ".pid") if pid_file is None else pid_file
        self.log_file = socket.with_name(socket.name + ".log")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> ProcessRef | None:
        """The server's process if it runs, whoever started it."""
        return find(self.pid_file)

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server and wait until it answers.

        Raises:
            NotFoundError: no such image, or qemu-nbd is not installed.
            ConflictError: another process has the image open, or this server runs already.
            UnavailableError, TimeoutExceededError: qemu-nbd failed or does not answer; nothing is left running.
        """
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError as error:
            raise NotFoundError(f"no such image: {self.path}", path=str(self.path)) from error
        driver = "host_device" if stat.S_ISBLK(mode) else "file"
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        if self.process is None:
            self.socket.unlink(missing_ok=True)
        ref = spawn(
            self._argv(driver), pid_file=self.pid_file, log_file=self.log_file, cwd=self.socket.parent
        )
        try:
            wait_ready(
                lambda: answers(self.socket),
                ref=ref,
                what=f"qemu-nbd for {self.path}",
                log_file=self.log_file,
                timeout_s=timeout_s,
            )
        except BaseException as error:
            terminate(ref, STOP_TIMEOUT_S)
            self.pid_file.unlink(missing_ok=True)
            self.socket.unlink(missing_ok=True)
            if isinstance(error, UnavailableError) and _says_locked(error.message):
                raise ConflictError(
                    f"{self.path} is open elsewhere: {error.attributes.get('log', '')}",
                    hint="shut down the machine or end the tool that uses the image, then try again",
                    path=str(self.path),
                ) from error
            raise

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the server; returns when it has ended and the image is closed. Safe to repeat."""
        ref = self.process
        if ref is not None:
            terminate(ref, timeout_s)
        for file in (self.pid_file, self.socket, self.log_file, Path(f"{self.log_file}.old")):
            file.unlink(missing_ok=True)

    def _argv(self, driver: str) -> list[str]:
        # Named by options, not by file name: qemu reads "a:b" as protocol "a". A comma is escaped by doubling.
        filename = str(self.path.absolute()).replace(",", ",,")
        options = ["--persistent", "--shared=0", "--cache=writeback", "--aio=threads"]
        options += ["--discard=unmap", "--detect-zeroes=unmap"] if self.writable else ["--read-only"]
        if self.bitmap is not None:
            options += ["--bitmap", self.bitmap]
        return [
            "qemu-nbd",
            *options,  # --shared=0 is "no limit": each of our processes uses several connections
            "--socket",
            name_for_child(self.socket),
            "--image-opts",
            f"driver={self.format},file.driver={driver},file.filename={filename}",
        ]


def answers(socket: Path, timeout_s: float = 0.5) -> bool:
    """Return whether an NBD server greets on `socket`.

    To be able to connect is not enough: qemu-nbd listens before it has opened the image.
    """
    magic = NBDMAGIC.to_bytes(8, "big")
    try:
        with connect(socket, timeout_s) as connection:
            received = b""
            while len(received) < len(magic):
                part = connection.recv(len(magic) - len(received))
                if not part:
                    return False
                received += part
    except OSError:
        return False
    return received == magic


def _says_locked(text: str) -> bool:
    return "Failed to get" in text and "lock" in text
