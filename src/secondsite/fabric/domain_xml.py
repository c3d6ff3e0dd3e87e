"""Reading libvirt domain XML: disks, interfaces, problems, our own metadata. Pure: text in, values out.

Promises: input is bounded and a document type is refused, so neither entities nor external subsets are ever read;
anything that is no domain raises InvalidInputError. Nothing here touches a file or libvirt.

Our own metadata is one element (libvirt keeps one per namespace):

    <secondsite:machine xmlns:secondsite="urn:secondsite:domain:1">
      <labels item= epoch= role= />            whose machine it is          (replica_xml.py)
      <lock reason= autostart="yes|no">XML</lock>   the definition without the lock  (lock_xml.py)
      <displaced autostart=>XML</displaced>         the locked machine that a failback put aside
    </secondsite:machine>
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from secondsite.errors import InvalidInputError
from secondsite.fabric.inventory import (
    DISKS_MAX,
    DiskInfo,
    Labels,
    NicInfo,
    Problem,
    ProblemCode,
    ReplicaRole,
)
from secondsite.fabric.port import LIBVIRT_FORMAT
from secondsite.model.ids import DiskKey, parse_disk_key
from secondsite.model.manifest import VmDefinition

XML_CHARS_MAX: Final = 4 << 20
"""libvirt itself refuses documents above 10 MiB; a domain is some 10 KiB, with a lock's copy twice that."""
NAMESPACE: Final = "urn:secondsite:domain:1"
_OURS: Final = f"{{{NAMESPACE}}}machine"
_QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_AGENT: Final = "org.qemu.guest_agent.0"

# Only how prefixes are written; other programs look for the customary ones.
ET.register_namespace("secondsite", NAMESPACE)
ET.register_namespace("qemu", _QEMU_NAMESPACE)
ET.register_namespace("libosinfo", "http://libosinfo.org/xmlns/libvirt/domain/1.0")

LOCK_FOLDER: Final = "/LOCKED-by-Second-Site"
"""No image is ever here: a disk below it keeps a machine from starting."""


def parse_domain(text: str) -> ET.Element:
    """Return the root of a domain's XML.

    Raises:
        InvalidInputError: too long, with a document type, not well-formed, or not a domain.
    """
    if len(text) > XML_CHARS_MAX:
        raise InvalidInputError("the machine's XML is too long", length=len(text))
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InvalidInputError(
            "the machine's XML has a document type", hint="libvirt writes none: look where it came from"
        )
    try:
        root = ET.fromstring(text)  # noqa: S314 - bounded, and without a document type there are no entities
    except (ET.ParseError, ValueError) as error:
        raise InvalidInputError(f"the machine's XML is not well-formed: {error}") from error
    if root.tag != "domain":
        raise InvalidInputError(f"not a libvirt domain: <{root.tag}>")
    return root


def to_text(root: ET.Element) -> str:
    """Return the XML of `root`, indented as libvirt does."""
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")


def definition_root(definition: VmDefinition) -> ET.Element:
    """Parse a definition that must be libvirt's."""
    if definition.format != LIBVIRT_FORMAT:
        raise InvalidInputError(
            f"definition of format {definition.format!r}", hint=f"the libvirt fabric takes {LIBVIRT_FORMAT}"
        )
    return parse_domain(definition.text)


# -- our metadata --------------------------------------------------------------------------------------------


def ours(root: ET.Element, *, create: bool = False) -> ET.Element | None:
    """Return our metadata element; with `create` it is made if missing."""
    metadata = root.find("metadata")
    if metadata is None:
        if not create:
            return None
        metadata = ET.SubElement(root, "metadata")
    found = metadata.find(_OURS)
    if found is None and create:
        found = ET.SubElement(metadata, _OURS)
    return found


def read_labels(root: ET.Element) -> Labels | None:
    """Return our labels, None if the machine is not ours. Malformed ones raise CorruptError."""
    machine = ours(root)
    element = None if machine is None else machine.find("labels")
    if element is None:
        return None
    return Labels.parse(element.get("item", ""), element.get("epoch", ""), element.get("role", ""))


@dataclass(frozen=True, slots=True)
class Kept:
    """A definition that our metadata keeps: what a lock replaced, or what a failback displaced."""

    text: str
    autostart: bool
    reason: str


def read_kept(root: ET.Element, name: str) -> Kept | None:
    """Return what our metadata keeps under `name` ("lock" or "displaced")."""
    machine = ours(root)
    element = None if machine is None else machine.find(name)
    if element is None:
        return None
    return Kept(element.text or "", element.get("autostart") == "yes", element.get("reason", ""))


def write_kept(root: ET.Element, name: str, kept: Kept | None) -> None:
    """Keep a definition in our metadata, or (None) keep it no longer."""
    machine = ours(root, create=True)
    assert machine is not None
    for old in machine.findall(name):
        machine.remove(old)
    if kept is not None:
        element = ET.SubElement(
            machine, name, {"reason": kept.reason, "autostart": "yes" if kept.autostart else "no"}
        )
        element.text = kept.text


# -- devices -------------------------------------------------------------------------------------------------


def devices(root: ET.Element) -> ET.Element:
    """Return <devices>, made if missing."""
    found = root.find("devices")
    return ET.SubElement(root, "devices") if found is None else found


def disk_elements(root: ET.Element) -> Iterator[tuple[DiskKey, ET.Element]]:
    """Yield the disks by key, without the one that a lock added."""
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        key = "" if target is None else target.get("dev", "")
        if not is_lock_disk(disk):
            yield parse_disk_key(key), disk


def is_lock_disk(disk: ET.Element) -> bool:
    """Whether a lock added this disk."""
    source = disk.find("source")
    return source is not None and source.get("file", "").startswith(LOCK_FOLDER + "/")


# -- interfaces ----------------------------------------------------------------------------------------------


def network_of(interface: ET.Element) -> str | None:
    """Return what the interface is connected to, as `NicInfo.network` writes it.

    User-mode networking with the link down is how a replica's interface is disconnected (replica_nics.py): None.
    """
    link = interface.find("link")
    if interface.get("type") == "user" and link is not None and link.get("state") == "down":
        return None
    kind = interface.get("type", "")
    source = interface.find("source")
    attribute = {"network": "network", "bridge": "bridge", "direct": "dev"}.get(kind)
    if attribute is None:
        return kind or None
    name = "" if source is None else source.get(attribute, "")
    if not name:
        return None
    return name if kind == "network" else f"{kind}:{name}"


def read_nics(root: ET.Element) -> tuple[NicInfo, ...]:
    """Return the interfaces, in the definition's order."""
    nics = []
    for interface in root.iterfind("devices/interface"):
        mac, model = interface.find("mac"), interface.find("model")
        nics.append(
            NicInfo(
                mac="" if mac is None else mac.get("address", ""),
                network=network_of(interface),
                model="" if model is None else model.get("type", ""),
            )
        )
    return tuple(nics)


def agent_connected(live: ET.Element) -> bool:
    """Whether a guest agent is connected, by a running machine's XML."""
    return any(
        target.get("name") == _AGENT and target.get("state") == "connected"
        for target in live.iterfind("devices/channel/target")
    )


# -- problems of the machine ---------------------------------------------------------------------------------


def machine_problems(root: ET.Element, disks: tuple[DiskInfo, ...]) -> tuple[Problem, ...]:
    """Return what forbids protection, or what one should know, as far as the definition shows it."""
    return (
        tuple(_passthrough(root)) + tuple(_not_replicated(root)) + tuple(_disk_set(disks)) + tuple(_own(root))
    )


def _passthrough(root: ET.Element) -> Iterator[Problem]:
    hint = "remove the device from the machine: the other host does not have it"
    held = {
        "devices/hostdev": "a device of the host",
        "devices/interface[@type='hostdev']": "a network device of the host",
        "devices/tpm/backend[@type='passthrough']": "the host's TPM",
        "devices/memory[@model='nvdimm']": "non-volatile memory, which is not replicated",
        "devices/shmem": "memory shared with the host",
        "launchSecurity": "memory encrypted by the host's processor",
    }
    for path, what in held.items():
        if root.find(path) is not None:
            yield Problem(ProblemCode.PASSTHROUGH, f"the machine uses {what}", hint)


def _not_replicated(root: ET.Element) -> Iterator[Problem]:
    loader = root.find("os/loader")
    if root.find("os/nvram") is not None or (loader is not None and loader.get("type") == "pflash"):
        yield Problem(
            ProblemCode.NVRAM,
            "UEFI variables are not replicated: the replica starts with fresh ones",
            "make sure that the guest has the fallback loader \\EFI\\BOOT",
            forbids=False,
        )
    if root.find("devices/tpm/backend[@type='emulator']") is not None:
        yield Problem(
            ProblemCode.TPM,
            "the TPM's state is not replicated: the replica starts with an empty one",
            "keep the recovery keys of what the guest sealed in it",
            forbids=False,
        )
    if root.find("devices/filesystem") is not None:
        yield Problem(
            ProblemCode.SHARED_FOLDER,
            "folders shared from the host are not replicated and missing on the replica",
            "let the guest start without them (nofail)",
            forbids=False,
        )
    if root.find(f"{{{_QEMU_NAMESPACE}}}commandline") is not None:
        yield Problem(
            ProblemCode.QEMU_ARGUMENTS,
            "the machine has QEMU arguments of its own, which go to the replica as they are",
            "make sure that what they name exists on the other host",
            forbids=False,
        )


def _disk_set(disks: tuple[DiskInfo, ...]) -> Iterator[Problem]:
    plain = [disk for disk in disks if disk.device == "disk"]
    good = [disk for disk in plain if disk.replicable]
    if len(good) > DISKS_MAX:
        yield Problem(
            ProblemCode.TOO_MANY_DISKS,
            f"the machine has {len(good)} disks, at most {DISKS_MAX} are supported",
            "exclude some, or join them inside the guest",
        )
    if not good:
        yield Problem(
            ProblemCode.NO_DISK,
            "the machine has no disk that can be replicated",
            "see the disks' own problems",
        )
    for disk in plain:
        if good and not disk.replicable:
            yield Problem(
                ProblemCode.DISK_LEFT_OUT,
                f"{disk.key} cannot be replicated and will not exist on the replica",
                "; ".join(problem.message for problem in disk.problems if problem.forbids),
                forbids=False,
            )


def _own(root: ET.Element) -> Iterator[Problem]:
    lock = read_kept(root, "lock")
    if lock is not None:
        yield Problem(
            ProblemCode.LOCKED, f"the machine is locked: {lock.reason}", "its other side is the active one"
        )
    labels = read_labels(root)
    if labels is not None and labels.role is ReplicaRole.TEST:
        yield Problem(ProblemCode.OURS, "the machine is a test failover", "it is deleted by cleanup-test")


# -- names ---------------------------------------------------------------------------------------------------

_NAME = re.compile(r"[^\x00-\x1f\x7f/]{1,200}")


def check_name(name: str) -> str:
    """Return `name` if libvirt takes it as a machine's name; else raise InvalidInputError."""
    if not _NAME.fullmatch(name) or not name.strip() or name in {".", ".."}:
        raise InvalidInputError(
            f"not a machine's name: {name!r}", hint="no slash, no control characters, 1 to 200 long"
        )
    return name


# -- trees ---------------------------------------------------------------------------------------------------


def child(parent: ET.Element, tag: str, *, first: bool = False) -> ET.Element:
    """Return the first child of that tag, made if missing (at the beginning if `first`)."""
    found = parent.find(tag)
    if found is None:
        found = ET.Element(tag)
        parent.insert(0 if first else len(parent), found)
    return found


def drop(root: ET.Element, path: str) -> None:
    """Remove all that `path` finds (ElementTree knows no parents, so they are looked up)."""
    doomed = root.findall(path)
    if doomed:
        for parent in list(root.iter()):
            for element in list(parent):
                if any(element is one for one in doomed):
                    parent.remove(element)
