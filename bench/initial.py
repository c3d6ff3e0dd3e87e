"""Initial replication of a machine's disk to a sealed point, beside qemu-img convert to qemu-nbd; both over mutual TLS.

    python bench/initial.py [--mib 2048] [--runs 3] [--line-mib 192] [--line-mbit 100] [--only KIND...]

Ours is what `secondsite` does when an item is enabled: two node daemons in processes of their own, a machine on a real
libvirt and QEMU (running, paused), `source.start` at one end; timed from that command until the first point is sealed in the
target's journal and acknowledged. The peer copies the same qcow2 image through its own NBD to a raw file, which it flushes
at its end. Both are timed in turns, on the same folder, and each point is compared with the image afterwards.

With a line (root only) both cross the same pair of network namespaces, limited by the kernel's token bucket.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from report import Row, say
from two_nodes import Line, TwoNodes, free_port, line, two_nodes

from secondsite.lab.hypervisor import Hypervisor
from secondsite.model.ids import DiskKey, ItemId, NodeId
from secondsite.model.policy import Policy
from secondsite.model.units import KIB, MIB
from secondsite.ship.identity import CertificateAuthority
from support.tracked_machines import TrackedMachine

VDA = DiskKey("vda")
VM = "bench"
POLICY = Policy(copy_frequency_s=900)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one comparison runs."""

    folder: Path
    nodes: TwoNodes
    machine: TrackedMachine
    peer: Peer
    size: int


class Peer:
    """qemu-img convert to a qemu-nbd that asks for client certificates."""

    def __init__(self, folder: Path, on: Line | None) -> None:
        self._folder = folder
        self._on = on
        authority = CertificateAuthority.create("bench")
        for node, role in (("source", "client"), ("target", "server")):
            authority.issue_credentials(NodeId(node), folder / node, names=["localhost"])
            (folder / role).mkdir()
            shutil.copy(folder / node / "ca.pem", folder / role / "ca-cert.pem")
            shutil.copy(folder / node / "node.pem", folder / role / f"{role}-cert.pem")
            shutil.copy(folder / node / "node.key", folder / role / f"{role}-key.pem")

    def copy(self, image: Path, size: int, *, zeros: bool = True) -> float:
        """Copy the image to a new file; return the seconds. `zeros`: it may look for zeros (qemu-img's default)."""
        target = self._folder / "target.raw"
        with target.open("wb") as file:
            file.truncate(size)
        port, host = free_port(), self._on.target_address if self._on else "127.0.0.1"
        server = subprocess.Popen(
            [
                *(Line.inside(self._on.target) if self._on else ()),
                *("qemu-nbd", "-t", "-x", "d", "-f", "raw", "-b", host, "-p", str(port), "-e", "4"),
                *("--discard=unmap", "--detect-zeroes=off", "--cache=writeback", "--aio=threads"),
                *("--object", self._tls("server"), "--tls-creds", "t", str(target)),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_for(port)
            started = time.perf_counter()
            subprocess.run(
                [
                    *(Line.inside(self._on.source) if self._on else ()),
                    *("qemu-img", "convert", "-U", "-n", "-W", "-m", "16", "-f", "qcow2", "-t", "writeback"),
                    *(() if zeros else ("-S", "0")),
                    *("--object", self._tls("client"), "--target-image-opts", str(image)),
                    f"driver=nbd,host={host},port={port},export=d,tls-creds=t,tls-hostname=localhost",
                ],
                check=True,
            )
            return time.perf_counter() - started
        finally:
            server.terminate()
            server.wait()
            target.unlink()

    def _tls(self, role: str) -> str:
        return f"tls-creds-x509,id=t,dir={self._folder / role},verify-peer=yes,endpoint={role}"

    def _wait_for(self, port: int) -> None:
        """Until somebody listens; looked up in the kernel's table, for a trial connection would end a qemu-nbd."""
        table = [*(Line.inside(self._on.target) if self._on else ()), "ss", "-Hltn", f"sport = :{port}"]
        while not subprocess.run(table, check=True, capture_output=True, text=True).stdout.strip():
            time.sleep(0.02)


def ours(place: Place, *, check: bool) -> tuple[float, int]:
    """Replicate once; return the seconds until the point was acknowledged, and the bytes on the wire."""
    disks = {VDA: place.size}
    item = place.nodes.prepare(VM, disks, POLICY)
    cpu = (place.nodes.source.cpu_s(), place.nodes.target.cpu_s())
    started = time.perf_counter()
    place.nodes.start(item, VM, disks, POLICY)
    outcome = place.nodes.source.first_cycle(item)
    seconds = time.perf_counter() - started
    used = (place.nodes.source.cpu_s() - cpu[0], place.nodes.target.cpu_s() - cpu[1])
    print(
        f"    ours {place.size / seconds / 1e6:6.0f} MB/s, {seconds:.2f} s (cycle {outcome['seconds']:.2f}),"
        f" {outcome['bytes_shipped'] / 1e6:.0f} MB on the wire, processor s: source {used[0]:.1f} target {used[1]:.1f}",
        flush=True,
    )
    if check:
        _compare(place, item)
    place.nodes.disable(item)
    return seconds, int(outcome["bytes_shipped"])


def _compare(place: Place, item: ItemId) -> None:
    """The base of a journal whose only point is the first one is the disk at that point."""
    base = place.nodes.journals / item / "base" / "vda.raw"
    points = list((place.nodes.journals / item / "points").glob("*.point"))
    if len(points) != 1:
        raise SystemExit(f"one point was to be sealed, there are {len(points)}")
    subprocess.run(
        ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", place.machine.images[VDA], str(base)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


# -- images ------------------------------------------------------------------------------------------------


def random_data(size: int) -> Iterator[bytes]:
    """Incompressible, every block another."""
    for _ in range(size // (8 * MIB)):
        yield os.urandom(8 * MIB)


def half_random(size: int) -> Iterator[bytes]:
    """Each 4 KiB half random, half a text of its own: about half the size under any quick compressor."""
    for first in range(0, size // (4 * KIB), 2048):
        noise = os.urandom(4 * MIB)
        yield b"".join(
            noise[at * 2048 : at * 2048 + 2048] + (b"record %010d;" % (first + at)).ljust(64, b".") * 32
            for at in range(2048)
        )


def zero_data(size: int) -> Iterator[bytes]:
    """Zeros that are allocated: what a disk holds that was wiped by writing."""
    for _ in range(size // (8 * MIB)):
        yield bytes(8 * MIB)


def no_data(size: int) -> Iterator[bytes]:  # noqa: ARG001 - nothing is written
    """Holes."""
    return iter(())


KINDS: dict[str, Callable[[int], Iterator[bytes]]] = {
    "random": random_data,
    "zeros": zero_data,
    "holes": no_data,
    "half": half_random,
}


def fill(image: Path, size: int, pieces: Iterator[bytes]) -> None:
    """Make the qcow2 image anew with these contents, zeros as data."""
    raw = image.with_suffix(".raw")
    with raw.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        written = file.tell()
        file.truncate(size)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size)], check=True)
    if written:
        options = ("-n", "-W", "-S", "0", "-f", "raw", "-O", "qcow2")
        subprocess.run(["qemu-img", "convert", *options, str(raw), str(image)], check=True)
    raw.unlink()


# -- runs --------------------------------------------------------------------------------------------------


@contextmanager
def place_for(folder: Path, size: int, kind: str, on: Line | None) -> Iterator[Place]:
    """Two sites with a machine whose disk is of this kind."""
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "p").mkdir()
    with Hypervisor(folder / "a", "a") as source, Hypervisor(folder / "b", "b") as target:
        machine = TrackedMachine(source, folder / "m", VM, {VDA: size})
        fill(machine.images[VDA], size, KINDS[kind](size))
        source.own(machine.images[VDA])
        machine.start()
        try:
            with two_nodes(folder, source, target, on) as nodes:
                yield Place(folder, nodes, machine, Peer(folder / "p", on), size)
        finally:
            machine.remove()
            machine.connection.close()
    shutil.rmtree(folder)


def compare(
    place: Place, kind: str, runs: int, *, zeros: bool = True
) -> tuple[list[float], list[float], int]:
    """Run both in turns; return their seconds, and our bytes on the wire."""
    mine, theirs, wire = [], [], 0
    for run in range(runs):
        os.sync()
        theirs.append(place.peer.copy(place.machine.images[VDA], place.size, zeros=zeros))
        print(f"    peer {place.size / theirs[-1] / 1e6:6.0f} MB/s, {theirs[-1]:.2f} s ({kind})", flush=True)
        os.sync()
        seconds, wire = ours(place, check=run == 0)
        mine.append(seconds)
    return mine, theirs, wire


def row(
    kind: str, title: str, bound: float, size: int, found: tuple[list[float], list[float], int], more: str
) -> None:
    """Say the row of one comparison, by the medians."""
    mine, theirs = (size / statistics.median(times) / 1e6 for times in found[:2])
    conditions = (
        f"{size // MIB} MiB qcow2 of a running machine, {kind}; two node daemons, mutual TLS, {more}; median of"
        f" {len(found[0])}, in turns; load {os.getloadavg()[0]:.1f}"
    )
    say(
        Row(
            title, conditions, f"{mine:.0f} MB/s", f"{theirs:.0f} MB/s", mine / theirs, "x", bound, least=True
        )
    )


TITLES = {
    "random": ("initial replication, incompressible", "incompressible", 1.0),
    "zeros": ("initial replication, zeros", "zeros that are allocated", 5.0),
    "holes": ("initial replication, holes", "not a byte allocated", 5.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--line-mib", type=int, default=192)
    parser.add_argument("--line-mbit", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends, also when the time is over
    folder = Path(tempfile.mkdtemp(prefix="ssi-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        for kind, (title, what, bound) in TITLES.items():
            if kind in options.only:
                size = options.mib * MIB
                with place_for(folder / kind[0], size, kind, None) as place:
                    found = compare(place, kind, options.runs)
                    more = "loopback"
                    if kind == "zeros":
                        all_sent = size / place.peer.copy(place.machine.images[VDA], size, zeros=False) / 1e6
                        more += (
                            f"; the peer looks for zeros (its default; with -S 0 it does {all_sent:.0f} MB/s)"
                        )
                    row(what, title, bound, size, found, more)
        if "half" in options.only:
            size = options.line_mib * MIB
            with line(options.line_mbit) as on, place_for(folder / "l", size, "half", on) as place:
                found = compare(place, "half", options.runs)
                more = (
                    f"a line of {options.line_mbit} Mbit/s (tbf on a veth pair, the same for both), "
                    f"{found[2] / size:.2f} of the size on the wire"
                )
                title = f"initial replication at {options.line_mbit} Mbit/s, half-compressible"
                row("half-compressible (smaller so that it fits the time)", title, 1.8, size, found, more)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
