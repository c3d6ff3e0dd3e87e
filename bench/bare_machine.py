"""A lab with one protected machine that has no operating system: a real QEMU, paused, whose own disk device is written to.

Two hypervisors, two nodes and the service run as they do in production, each in its process. What would be the guest's
writes come by QEMU's monitor into the disk's own device (`qemu-io` there), so tracking, capture, log, ship, journal and service see what
they see of a guest; only the guest's processor time is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from secondsite.api_client import ApiClient, Connection
from secondsite.lab import sites

NAME = "bare"
DEVICE = "/machine/peripheral/ua-vda/virtio-backend"


@dataclass
class BareLab:
    """The running lab."""

    folder: Path
    facts: dict[str, Any]
    api: ApiClient
    connection: libvirt.virConnect
    domain: libvirt.virDomain

    def write(self, *commands: str) -> None:
        """Run commands of qemu-io on the machine's disk."""
        for command in commands:
            said = libvirt_qemu.qemuMonitorCommand(
                self.domain,
                f'qemu-io -d {DEVICE} "{command}"',
                libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
            )
            assert "rror" not in said, said

    def pid(self, name: str) -> int:
        """The process id of "service", or of the "primary" or "secondary" node."""
        return int(self.facts["service_pid"] if name == "service" else self.facts["sites"][name]["node_pid"])

    def protect(self, timeout_s: float = 180) -> Path:
        """Protect the machine; return its journal's folder once the job has ended."""
        self.wait(
            lambda: any(row["name"] == NAME and row["ready"] for row in self.api.get("/protectable-items")),
            30,
        )
        self.finish(self.api.post("/items", {"vm": NAME}), timeout_s)
        return Path(self.facts["sites"]["secondary"]["journals"]) / self.item()["id"]

    def item(self) -> dict[str, Any]:
        """The item as the service shows it."""
        found: dict[str, Any] = self.api.get(f"/items/{NAME}")
        return found

    def finish(self, job: dict[str, Any], timeout_s: float) -> None:
        """Wait for a job to succeed."""
        self.wait(lambda: self.api.get(f"/jobs/{job['id']}")["ended"] is not None, timeout_s)
        done = self.api.get(f"/jobs/{job['id']}")
        if done["state"] != "Succeeded":
            raise SystemExit(f"{done['operation']} failed: {done['error']}")

    def wait(self, holds: Any, timeout_s: float) -> None:
        """Wait until it holds."""
        end = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > end:
                raise SystemExit(f"not in {timeout_s:.0f} s: {self.item().get('health')}")
            time.sleep(0.2)


@contextmanager
def bare_lab(disk_size: int, prepare: Sequence[str] = (), qcow2: Path | None = None) -> Iterator[BareLab]:
    """Start the lab and the machine with a thin disk of this size, or with this image; remove everything at the end.

    `prepare`: commands of qemu-io before it is protected.
    """
    folder = Path(tempfile.mkdtemp(prefix="ssb-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        facts = sites.up(folder / "lab", lambda text: print(text, file=sys.stderr))
        hypervisor = sites.Lab.load(folder / "lab").hypervisor("primary")
        image = hypervisor.storage / f"{NAME}.qcow2"
        if qcow2 is None:
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(disk_size)], check=True
            )
        else:
            shutil.move(qcow2, image)
        hypervisor.own(image)
        connection = hypervisor.connect()
        domain = connection.defineXML(_xml(image))
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        api = ApiClient(Connection(facts["url"], facts["token"], Path(facts["ca"])))
        lab = BareLab(folder, facts, api, connection, domain)
        lab.write(*prepare)
        yield lab
        connection.close()
    finally:
        sites.down(folder / "lab")
        shutil.rmtree(folder)


def _xml(image: Path) -> str:
    return f"""<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
    <os><type arch='x86_64' machine='q35'>hvm</type></os>
    <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{image}'/>
    <target dev='vda' bus='virtio'/><alias name='ua-vda'/></disk><memballoon model='none'/></devices></domain>"""
