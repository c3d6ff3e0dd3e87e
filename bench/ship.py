# ruff: noqa: ARG002 - the receiver ignores what it does not need
"""How fast parts cross a link: Sender to Listener over loopback with mutual TLS, beside qemu-img to qemu-nbd.

Both ends are separate processes. Our receiver does what a journal does with a part: write it to a file, check its
BLAKE3, fsync, rename. qemu-img convert writes through to qemu-nbd, which flushes at the end. Both move the same
bytes in the same run on the same folder, so only the ratio means anything on another machine.

    python bench/ship.py [--mib 512] [--folder DIR] [--connections 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from secondsite.durable import fsync_dir
from secondsite.errors import CorruptError
from secondsite.model.ids import Digest, DiskKey, Epoch, ItemId, NodeId
from secondsite.model.units import Buffer
from secondsite.ship.client import Endpoint
from secondsite.ship.identity import CertificateAuthority, Credentials
from secondsite.ship.listener import Listener
from secondsite.ship.protocol import CellRange, PartKind, PartRef, ReplicaStatus
from secondsite.ship.sender import Outgoing, Sender

ITEM, EPOCH = ItemId("0b6c7e9a-0000-4000-8000-00000000aaaa"), Epoch(1)
MIB, PART = 1 << 20, 64 << 20


class FileReceiver:
    """Parts as files, made durable one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def status(self, item: ItemId, peer: NodeId) -> ReplicaStatus:
        return ReplicaStatus(EPOCH, "initial", None)

    def has(self, item: ItemId, peer: NodeId, epoch: Epoch, parts: Sequence[PartRef]) -> set[Digest]:
        return {part.digest for part in parts if not (self.folder / part.digest).exists()}

    @contextmanager
    def incoming(
        self, item: ItemId, peer: NodeId, epoch: Epoch, digest: Digest, kind: PartKind
    ) -> Iterator[FileIncoming]:
        temporary = self.folder / f"{digest}.tmp-{os.urandom(4).hex()}"
        with temporary.open("wb", buffering=0) as file:
            yield FileIncoming(file.fileno(), temporary, digest)

    def apply_initial(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, digests: Sequence[Digest]
    ) -> None:
        raise NotImplementedError

    def seal(self, item: ItemId, peer: NodeId, epoch: Epoch, manifest: bytes) -> Digest:
        raise NotImplementedError

    def digests(
        self, item: ItemId, peer: NodeId, epoch: Epoch, disk: DiskKey, ranges: Sequence[CellRange]
    ) -> Iterator[bytes]:
        raise NotImplementedError


class FileIncoming:
    """One file."""

    def __init__(self, fd: int, path: Path, digest: Digest) -> None:
        self._fd, self._path, self._digest = fd, path, digest
        self._hash = blake3()

    def write(self, data: Buffer) -> None:
        os.write(self._fd, data)
        self._hash.update(data)

    def commit(self) -> None:
        if self._hash.hexdigest() != self._digest:
            raise CorruptError("wrong digest")
        os.fsync(self._fd)
        self._path.rename(self._path.with_name(self._digest))
        fsync_dir(self._path.parent)


def serve(folder: Path) -> None:
    """Run the listener until the standard input ends; print the port first, the CPU seconds last."""
    (folder / "parts").mkdir()
    receiver = FileReceiver(folder / "parts")
    with Listener(("127.0.0.1", 0), credentials(folder / "target"), receiver, threads=8) as listener:
        print(listener.address[1], flush=True)
        for _ in sys.stdin:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            shutil.rmtree(receiver.folder)
            receiver.folder.mkdir()
            print(usage.ru_utime + usage.ru_stime, flush=True)


def credentials(folder: Path) -> Credentials:
    return Credentials(folder / "node.pem", folder / "node.key", folder / "ca.pem")


def cut(folder: Path, source: Path) -> list[Outgoing]:
    """Cut the image into parts, as capture does."""
    data = source.read_bytes()
    parts = []
    for start in range(0, len(data), PART):
        piece = data[start : start + PART]
        path = folder / f"part-{start}"
        # Parts are named by their content, and equal ones are sent once: make them differ in one block.
        path.write_bytes(start.to_bytes(8, "big") + piece[8:])
        parts.append(Outgoing(Digest(blake3(path.read_bytes()).hexdigest()), PartKind.LOG, path, len(piece)))
    return parts


def ours(
    folder: Path, parts: list[Outgoing], port: int, *, connections: int, compression: bool
) -> tuple[float, float]:
    """Send the parts; return the seconds and the CPU seconds of this process."""
    endpoint = Endpoint("127.0.0.1", port, NodeId("target"))
    cpu, start = time.process_time(), time.perf_counter()
    with Sender(
        endpoint,
        credentials(folder / "source"),
        ITEM,
        EPOCH,
        connections=connections,
        compression=compression,
    ) as sender:
        sender.send(parts)
        view = sender.progress.view()
    assert view.raw == sum(part.length for part in parts)
    return time.perf_counter() - start, time.process_time() - cpu


def qemu(folder: Path, source: Path, size: int) -> float:
    """Convert the image to a qemu-nbd over mutual TLS; return the seconds."""
    target = folder / "target.raw"
    with target.open("wb") as file:
        file.truncate(size)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tls = f"tls-creds-x509,id=t,dir={folder / 'qemu'},verify-peer=yes,endpoint="
    server = subprocess.Popen(
        [
            *(
                "qemu-nbd",
                "-t",
                "-x",
                "d",
                "-f",
                "raw",
                "-b",
                "127.0.0.1",
                "-p",
                str(port),
                "--discard=unmap",
            ),
            *("--object", tls + "server", "--tls-creds", "t", str(target)),
        ],
        stderr=subprocess.DEVNULL,  # it complains of the connection that only tries whether it listens
    )
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        start = time.perf_counter()
        subprocess.run(
            [
                *("qemu-img", "convert", "-n", "-W", "-f", "raw", "-t", "writeback", "-S", "0"),
                *("--object", tls + "client", "--target-image-opts", str(source)),
                f"driver=nbd,host=127.0.0.1,port={port},export=d,tls-creds=t,tls-hostname=localhost",
            ],
            check=True,
        )
        return time.perf_counter() - start
    finally:
        server.terminate()
        server.wait()
        target.unlink()


def make_identities(folder: Path) -> None:
    authority = CertificateAuthority.create("bench")
    for node in ("source", "target"):
        authority.issue_credentials(NodeId(node), folder / node, names=["localhost"])
    (folder / "qemu").mkdir()
    shutil.copy(folder / "source/ca.pem", folder / "qemu/ca-cert.pem")
    for node, role in (("source", "client"), ("target", "server")):
        shutil.copy(folder / node / "node.pem", folder / f"qemu/{role}-cert.pem")
        shutil.copy(folder / node / "node.key", folder / f"qemu/{role}-key.pem")


def random_image(path: Path, size: int) -> None:
    block = os.urandom(16 * MIB)
    with path.open("wb") as file:
        for index in range(size // len(block)):
            file.write(index.to_bytes(8, "big") + block[8:])


def zero_image(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(bytes(MIB))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--serve", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    size = options.mib * MIB
    images: dict[str, Callable[[Path, int], None]] = {"random": random_image, "zeros": zero_image}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_identities(folder)
        with subprocess.Popen(
            [sys.executable, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            assert server.stdin
            assert server.stdout
            port, cpu = int(server.stdout.readline()), 0.0
            for kind, make in images.items():
                source = folder / "source.raw"
                make(source, size)
                theirs = qemu(folder, source, size)
                print(f"{kind:7} qemu-img -> qemu-nbd  {options.mib / theirs:7.0f} MiB/s")
                parts = cut(folder, source)
                for compression in (False, True):
                    seconds, client = ours(
                        folder, parts, port, connections=options.connections, compression=compression
                    )
                    server.stdin.write("next\n")
                    server.stdin.flush()
                    now = float(server.stdout.readline())
                    print(
                        f"{kind:7} ours, zstd {'adaptive' if compression else 'off':8}  {options.mib / seconds:7.0f} MiB/s"
                        f"  ratio {theirs / seconds:4.2f}  CPU s/GiB: client {client / size * 2**30:4.2f}"
                        f" server {(now - cpu) / size * 2**30:4.2f}"
                    )
                    cpu = now
                for path in (source, *(part.path for part in parts)):
                    path.unlink()
            server.stdin.close()


if __name__ == "__main__":
    main()
