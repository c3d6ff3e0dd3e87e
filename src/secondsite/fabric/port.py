"""The port to a hypervisor: what the nodes ask of it, method by method.

Promises of every adapter:

- A method that changes something returns when the change was *observed*, or raises; waits are bounded.
- Every method may be repeated: asking for what already is so succeeds and changes nothing.
- `vm` is the machine's UUID or its name; the UUID wins. An unknown one raises NotFoundError.
- Thread-safe. A lost connection to the hypervisor raises UnavailableError and is re-opened at the next call.
- Only errors of `secondsite.errors` leave (and the two of this module).

What it does not do: read or write a guest's blocks (capture and nbd do), keep state of its own (labels and locks
live in the machine's definition), decide which role may run (epochs are checked by the node).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from secondsite.errors import Retry, SecondSiteError
from secondsite.fabric.inventory import (
    DISKS_MAX,
    DiskInfo,
    HostInfo,
    Inventory,
    Labels,
    NetworkInfo,
    NicInfo,
    PowerState,
    Problem,
    ProblemCode,
    ReplicaRole,
    VmInfo,
)
from secondsite.model.ids import DiskKey
from secondsite.model.manifest import VmDefinition

__all__ = [
    "DISKS_MAX",
    "LIBVIRT_FORMAT",
    "Cancelled",
    "CancelledError",
    "DiskInfo",
    "DiskSource",
    "Fabric",
    "HostInfo",
    "HypervisorError",
    "Inventory",
    "Labels",
    "NbdBacking",
    "NetworkInfo",
    "NicInfo",
    "PowerState",
    "Problem",
    "ProblemCode",
    "Progress",
    "ReplicaRole",
    "ReplicaSpec",
    "VmDefinition",
    "VmInfo",
    "never_cancelled",
]

LIBVIRT_FORMAT = "libvirt-domain"
"""`VmDefinition.format` of a libvirt domain's inactive XML."""

Cancelled = Callable[[], bool]
"""Polled at least every 0.2 s during a wait; true means: stop waiting, leave things consistent."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


def never_cancelled() -> bool:
    """Is the `Cancelled` of whoever does not cancel."""
    return False


class CancelledError(SecondSiteError):
    """The caller's `cancelled` said so. What was begun is stopped; the call may be repeated."""

    code = "cancelled"


class HypervisorError(SecondSiteError):
    """The hypervisor (or one of its tools) refused or failed; the message is its own."""

    code = "hypervisor"
    retry = Retry.LATER


@dataclass(frozen=True, slots=True)
class NbdBacking:
    """A read-only view of a disk: the export `export` of the NBD server on the Unix socket `socket`."""

    socket: Path
    export: str


@dataclass(frozen=True, slots=True)
class DiskSource:
    """What a replica's disk is made of: a qcow2 image, on a view of the journal or (None) standing alone."""

    overlay: Path
    backing: NbdBacking | None


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """A machine to define from another side's definition.

    name: what it is called here.
    disks: by the source's disk key; a disk of the source that is not named does not exist on the replica.
    networks: the source's network (as `NicInfo.network` writes it) to one here; None or no entry leaves the
        interface in place but disconnected (link down, and its other end leads nowhere).
    new_identity: a fresh UUID (for a test, whose original may exist on this host); else the source's own is kept.
    labels: written into the definition; see `list_ours`.
    allow_emulation: start a machine that needs hardware virtualisation by emulation if this host has none.
    """

    name: str
    definition: VmDefinition
    disks: Mapping[DiskKey, DiskSource]
    networks: Mapping[str, str | None]
    labels: Labels
    new_identity: bool = False
    allow_emulation: bool = False


class Fabric(Protocol):
    """One hypervisor host (or what manages several). See the module's docstring for what holds everywhere."""

    # -- what is there -------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """Return host, machines and networks. Cheap enough for every 10 s. A broken machine is listed with a problem."""
        ...

    def find(self, vm: str) -> VmInfo:
        """Return one machine. Raises NotFoundError."""
        ...

    def power(self, vm: str) -> PowerState:
        """Return the power state alone; cheaper than `find`."""
        ...

    def definition(self, vm: str) -> VmDefinition:
        """Return what `define_replica` takes elsewhere. Of a locked machine: the definition without the lock."""
        ...

    def list_ours(self) -> Sequence[VmInfo]:
        """Return the machines that carry our labels, so that a restart finds them and clean-up forgets none."""
        ...

    def close(self) -> None:
        """Give the connection back. Machines are not touched."""
        ...

    # -- power ---------------------------------------------------------------------------------------------

    def start(self, vm: str) -> None:
        """Start the machine; a paused one is resumed. Observed: it runs.

        Raises OperationRefusedError if it is locked, or what the hypervisor refuses as ConflictError or
        UnavailableError.
        """
        ...

    def shutdown(self, vm: str, *, timeout_s: float, cancelled: Cancelled = never_cancelled) -> bool:
        """Ask the guest to shut down (by its agent, else by ACPI) and wait. True if it is off; false if time ran out.

        The request is repeated meanwhile. Raises CancelledError.
        """
        ...

    def power_off(self, vm: str) -> None:
        """Cut the power. Observed: off."""
        ...

    def suspend(self, vm: str) -> bool:
        """Pause a machine that runs. Observed: its processors stand still, and what it had begun to write is done.

        True if this call paused it; false if it was off, crashed or paused already: then it is not ours to resume.
        """
        ...

    def resume(self, vm: str) -> bool:
        """Let a paused machine run on. True if it runs now; one that is off or crashed is never started (false)."""
        ...

    def resume_if_io_error(self, vm: str) -> bool:
        """Let a machine that paused on an I/O error run on. True if it runs now; false if it was not paused by one
        or paused again (its storage is still gone). A machine that an operator paused stays paused.

        To be called again until it is true: QEMU looks for a view that went away after 1, 2, 4, 8 and then every 16 s,
        so it may take as long after the view is back.
        """
        ...

    def autostart(self, vm: str) -> bool:
        """Whether the hypervisor starts the machine with its host. Of a locked machine: never."""
        ...

    def set_autostart(self, vm: str, *, on: bool) -> None:
        """Have the machine started with its host, or not. Observed. A transient machine cannot be: UnsupportedError."""
        ...

    def lock_power(self, vm: str, reason: str) -> None:
        """Fence the machine: whoever tries to start it fails with a telling error, and it does not start with its
        host. Its definition stays listed, its images and their bitmaps stay untouched. A machine that runs goes on:
        the lock forbids the next start. Locking again only updates the reason.
        """
        ...

    def unlock_power(self, vm: str, *, autostart: bool = True) -> None:
        """Give back exactly the definition and autostart that `lock_power` found; with `autostart` false the machine
        does not start with its host, whatever it did before.
        """
        ...

    def locked(self, vm: str) -> str | None:
        """Return the lock's reason, or None."""
        ...

    # -- replicas ------------------------------------------------------------------------------------------

    def create_overlay(self, path: Path, *, size: int, backing: NbdBacking, bitmap: str) -> None:
        """Create a qcow2 image of `size` bytes on the view, with the persistent dirty bitmap `bitmap` in it from the
        start. Durable. If it exists with just these properties it is kept, else ConflictError.
        """
        ...

    def define_replica(self, spec: ReplicaSpec) -> VmInfo:
        """Define (not start) the machine. The overlays must exist.

        A machine of that name or identity with the same item and role is replaced if it is off; any other, or
        one that runs, is a ConflictError. Raises UnsupportedError, with a hint, for what this host cannot run.
        """
        ...

    def make_standalone(
        self, vm: str, *, progress: Progress | None = None, cancelled: Cancelled = never_cancelled
    ) -> None:
        """Copy what the machine's disks still read from their views into the images, while it runs or while it is
        off. Observed: no disk has a backing, in the definition or in the image. What was pulled stays pulled when
        it is cancelled (CancelledError) or fails. An image loses its backing only when what was pulled into it is
        durable: killed or without power at any moment, what has none is whole, and the next call goes on.
        """
        ...

    def standalone(self, vm: str) -> bool:
        """Return whether no disk of the machine needs a view."""
        ...

    def undefine(self, vm: str, *, keep_disks: bool) -> None:
        """Remove the machine's definition and all that belongs to it (checkpoint metadata, NVRAM, saved state); with
        `keep_disks` false its image files, too. A machine that is not known is no error. One that is not off is a
        ConflictError.
        """
        ...

    def delete_disks(self, paths: Sequence[Path]) -> None:
        """Remove image files; missing ones are no error. Raises ConflictError if a machine that is not off uses one."""
        ...
