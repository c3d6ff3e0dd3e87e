"""Making a machine's disks stand alone: pull what they still read from their views, then drop the views.

While the machine runs, QEMU does it (654 MB/s measured on dense data; the guest goes on); while it is
off, qemu-storage-daemon does. Neither marks what it copies as changed. A machine may start or stop in between: each
disk is looked at again until none has a backing. Cut short at any moment, the next call goes on where this one was.

An image loses its backing only after what was copied into it, and where it lies, is on the disk. So the header tells the
truth whoever is killed, and whatever loses its power, at any moment: an image that names its view needs it, one that names
none is whole. See live_copy for how, and stream_offline for the same while the machine is off.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import libvirt

from secondsite.durable import fsync_file
from secondsite.fabric.connection import Connection
from secondsite.fabric.disk_xml import has_backing, image_path
from secondsite.fabric.domain_xml import disk_elements, parse_domain
from secondsite.fabric.images import image_info, stream_offline
from secondsite.fabric.inventory import PowerState
from secondsite.fabric.kept_xml import displaced_by, standalone_xml
from secondsite.fabric.libvirt_inventory import inactive_xml, power_state, secure_xml
from secondsite.fabric.libvirt_power import Waiting
from secondsite.fabric.libvirt_replica import backed_images
from secondsite.fabric.live_copy import GOING_S, LiveCopy, flush
from secondsite.fabric.port import Cancelled, CancelledError, HypervisorError, Progress

_SETTLE_S: Final = 10.0
"""libvirt rewrites a disk's definition some time after QEMU's job has gone."""
_ROUNDS_MAX: Final = 4
"""How often in a row a disk may be found with a backing after its pull, before this gives up."""


class Standalone:
    """See the module's docstring."""

    def __init__(self, connection: Connection, waiting: Waiting) -> None:
        self._connection = connection
        self._waiting = waiting

    def check(self, vm: str) -> bool:
        """See `Fabric.standalone`."""
        with self._connection.domain(vm, "look at") as domain:
            return not self._backed(domain) and _definition_is_standalone(domain)

    def make(self, vm: str, *, progress: Progress | None, cancelled: Cancelled) -> None:
        """See `Fabric.make_standalone`."""
        report = _Total(progress)
        for _round in range(_ROUNDS_MAX):
            with self._connection.domain(vm, "make stand alone") as domain:
                backed = self._backed(domain)
                report.expect({name: image_info(path).size for name, path in backed.items()})
                for name, path in backed.items():
                    if cancelled():
                        raise CancelledError(f"making {vm} stand alone was cancelled", vm=vm)
                    self._pull(domain, name, path, report.disk(name), cancelled)
                if not self._backed(domain) and self._is_durable(domain):
                    if not _definition_is_standalone(domain):
                        domain.connect().defineXML(standalone_xml(secure_xml(domain)))
                    break
        if not self.check(vm):
            raise HypervisorError(
                f"{vm} still needs its views after {_ROUNDS_MAX} attempts",
                hint="is the view served, and is there space for the whole disks?",
                vm=vm,
            )

    def _backed(self, domain: Any) -> dict[str, Path]:
        """Return the images that have a backing, by disk. A running machine's own chain tells; else the header does."""
        if power_state(domain)[0] is PowerState.OFF:
            text = inactive_xml(domain)
            images = set(backed_images(text))
            return {key: path for key, path in _images(parse_domain(text)).items() if path in images}
        live = parse_domain(domain.XMLDesc(0))
        with_backing = {key for key, disk in disk_elements(live) if has_backing(disk)}
        return {key: path for key, path in _images(live).items() if key in with_backing}

    def _is_durable(self, domain: Any) -> bool:
        """Have everything written that belongs to the images; False if the machine stopped or started meanwhile.

        Not needed for what we copied. But somebody else may have pulled, by hand, and given up the backing unflushed.
        """
        running = power_state(domain)[0] is not PowerState.OFF
        root = parse_domain(domain.XMLDesc(0) if running else inactive_xml(domain))
        try:
            for name, disk in _disks(root).items():
                _write_down(domain if running else None, name, disk)
        except libvirt.libvirtError:
            if not self._goes(domain):
                raise
            return False
        return running is (power_state(domain)[0] is not PowerState.OFF)

    def _pull(self, domain: Any, name: str, path: Path, progress: Progress, cancelled: Cancelled) -> None:
        if power_state(domain)[0] is PowerState.OFF:
            stream_offline(path, progress=progress, cancelled=cancelled)
            return
        try:
            _end_pull(domain, name)
            disk = _disks(parse_domain(domain.XMLDesc(0))).get(name)
            if disk is None or not has_backing(disk):
                return  # taken out of the machine just now, or somebody's pull was faster
            LiveCopy(domain, name, _node(disk), self._waiting).run(progress, cancelled)
            _write_down(domain, name, disk)
            with self._connection.unlisted.machine(domain.UUIDString()):
                domain.blockPull(name)
                self._watch(domain, name, progress, cancelled)
        except libvirt.libvirtError:
            # It was shut down meanwhile: the next round does the rest offline.
            if not self._goes(domain):
                raise

    def _goes(self, domain: Any) -> bool:
        """Whether a machine is off, or soon is: libvirt shows it as running for a moment after its QEMU has gone."""
        return self._waiting.until(lambda: not domain.isActive(), GOING_S)

    def _watch(self, domain: Any, name: str, progress: Progress, cancelled: Cancelled) -> None:
        while job := domain.blockJobInfo(name):
            progress(job["cur"], job["end"])
            if cancelled():
                domain.blockJobAbort(name)
                raise CancelledError(f"making {name} of {domain.name()} stand alone was cancelled", disk=name)
            self._waiting.pause(self._waiting.poll_s)
        if not self._waiting.until(lambda: name not in self._backed(domain), _SETTLE_S) and domain.isActive():
            raise HypervisorError(
                f"the pull of {name} of {domain.name()} ended before all was copied",
                hint="is the view served, and is there space for the whole disk? then try again",
                disk=name,
            )


class _Total:
    """Adds up the progress of several disks."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def expect(self, sizes: dict[str, int]) -> None:
        for name in self._sizes:
            if name not in sizes:
                self._done[name] = self._sizes[name]
        self._sizes.update(sizes)

    def disk(self, name: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            size = self._sizes[name]
            # A job counts in its own unit; what is reported never goes back.
            share = size if total <= 0 else min(size, done * size // total)
            self._done[name] = max(self._done.get(name, 0), share)
            if self._progress is not None:
                self._progress(sum(self._done.values()), sum(self._sizes.values()))

        return report


def _disks(root: ET.Element) -> dict[str, ET.Element]:
    return {
        key: disk
        for key, disk in disk_elements(root)
        if disk.get("device", "disk") == "disk" and image_path(disk) is not None
    }


def _images(root: ET.Element) -> dict[str, Path]:
    return {key: path for key, disk in _disks(root).items() if (path := image_path(disk)) is not None}


def _end_pull(domain: Any, name: str) -> None:
    """End a pull that somebody began, or the end of ours that a restart cut: it would drop the backing before the flush."""
    job = domain.blockJobInfo(name)
    if not job:
        return
    if job["type"] != libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL:
        raise HypervisorError(
            f"{name} of {domain.name()} is being copied by somebody else",
            hint="virsh blockjob shows it; once it has ended this goes on",
            disk=name,
        )
    domain.blockJobAbort(name)


def _node(disk: ET.Element) -> str:
    """Return QEMU's name of the image of a running machine's disk, as libvirt gives it."""
    source = disk.find("source")
    return f"libvirt-{'' if source is None else source.get('index', '')}-format"


def _write_down(domain: Any | None, name: str, disk: ET.Element) -> None:
    """Have a disk's image written with its map; `domain` if it runs."""
    path = image_path(disk)
    assert path is not None
    # Most of it from here: QEMU does nothing else while it flushes, and the guest would wait for gigabytes.
    fsync_file(path)
    if domain is not None and disk.find("driver[@type='qcow2']") is not None:  # others have no map
        flush(domain, name, _node(disk))
        fsync_file(path)  # also where QEMU was told not to, and to hear of errors of writing


def _definition_is_standalone(domain: Any) -> bool:
    text = inactive_xml(domain)
    disks = disk_elements(parse_domain(text))
    return not any(has_backing(disk) for _key, disk in disks) and displaced_by(text) is None
