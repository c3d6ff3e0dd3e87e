"""The manifest of a recovery point: the JSON document that makes a point exist.

A point is what its manifest names: for every disk its logs (in order of application), its zero extents, and its
size; beside them the VM's definition. The manifest's own digest is the BLAKE3 of its exact bytes; the next point
names it as `previous`, so the points form a chain. Bytes are canonical JSON (sorted keys, no spaces, UTF-8): the
target stores exactly the bytes that the source sent.

Extents of one point are disjoint: within a point a block is either in a log or in the zero extents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from secondsite.errors import CorruptError, InvalidInputError, UnsupportedError
from secondsite.model.ids import (
    Digest,
    DiskKey,
    Epoch,
    ItemId,
    Sequence,
    parse_digest,
    parse_disk_key,
    parse_item_id,
)
from secondsite.model.units import SECTOR

FORMAT: Final = "secondsite-point/1"
MANIFEST_BYTES_MAX: Final = 64 << 20
SEQUENCE_MAX: Final = 10**16 - 1
"""A point's file is named by its sequence in 16 digits: one of 17 would be acknowledged and never be found again."""
GROUP_LABEL: Final = "group"
"""Label of a point that was cut together with other machines': "<group>:<number>"; equal for all of them."""
GROUP_MEMBERS_LABEL: Final = "group.members"
"""How many machines were cut together."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d\.\d{6}Z", re.ASCII)


class Consistency(StrEnum):
    """What the guest's software finds when it starts from the point."""

    CRASH = "crash"
    APPLICATION = "application"
    PLANNED = "planned"  # the guest was shut down: nothing was in flight


class PointKind(StrEnum):
    """How the point came to be."""

    INITIAL = "initial"
    DELTA = "delta"
    RESYNC = "resync"
    MERGED = "merged"
    DIVERGED = "diverged"
    """The first point of a reversed item's journal: the old side's disks as they were, with what nobody else has."""


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file of the journal, named by its content. `length` in bytes is that of the whole file."""

    digest: Digest
    length: int


@dataclass(frozen=True, slots=True)
class DiskPoint:
    """What one point holds for one disk."""

    size: int
    logs: tuple[FileRef, ...] = ()
    zeros: FileRef | None = None
    changed: int = 0
    """Bytes of this disk that differ from the previous point (data and zeroed), for statistics."""


@dataclass(frozen=True, slots=True)
class VmDefinition:
    """The machine's definition as its hypervisor gave it, so that the second site needs nothing from the first."""

    format: str
    text: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """See the module's docstring. `time` is the instant whose state the point holds, by the source's clock."""

    item: ItemId
    name: str
    epoch: Epoch
    sequence: Sequence
    time: datetime
    consistency: Consistency
    kind: PointKind
    previous: Digest | None
    disks: Mapping[DiskKey, DiskPoint]
    vm: VmDefinition
    replaces: tuple[Digest, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes; their BLAKE3 is the point's digest."""
        document = {
            "format": FORMAT,
            "item": self.item,
            "name": self.name,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "time": format_time(self.time),
            "consistency": self.consistency.value,
            "kind": self.kind.value,
            "previous": self.previous,
            "replaces": list(self.replaces),
            "labels": dict(self.labels),
            "disks": {
                key: {
                    "size": disk.size,
                    "changed": disk.changed,
                    "logs": [{"digest": log.digest, "length": log.length} for log in disk.logs],
                    "zeros": None
                    if disk.zeros is None
                    else {"digest": disk.zeros.digest, "length": disk.zeros.length},
                }
                for key, disk in self.disks.items()
            },
            "vm": {"format": self.vm.format, "text": self.vm.text},
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse a manifest.

        Raises:
            CorruptError: not JSON, or a field is missing, of the wrong type or out of range.
            UnsupportedError: a format that this version does not know.
        """
        if len(data) > MANIFEST_BYTES_MAX:
            raise CorruptError("the manifest is too large", length=len(data))
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptError("the manifest is not JSON", reason=str(error)) from error
        if not isinstance(document, dict):
            raise CorruptError("the manifest is not a JSON object")
        if document.get("format") != FORMAT:
            raise UnsupportedError(
                f"manifest format {document.get('format')!r} is not known",
                hint=f"this version reads {FORMAT}",
            )
        try:
            return _parse(document)
        except (KeyError, TypeError, ValueError, AttributeError, InvalidInputError) as error:
            raise CorruptError(
                f"the manifest is malformed: {error}", reason=f"{type(error).__name__}: {error}"
            ) from error


def format_time(time: datetime) -> str:
    """Return an aware time as UTC text with microseconds: "2026-11-23T05:00:00.000000Z"."""
    if time.tzinfo is None:
        raise InvalidInputError("a time without a zone")
    # not strftime: its %Y does not pad years before 1000
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: object) -> datetime:
    """Parse what `format_time` wrote."""
    if not isinstance(text, str) or not _TIME.fullmatch(text):
        raise InvalidInputError(f"not a time: {text!r}", hint="expected 2026-11-23T05:00:00.000000Z")
    try:
        return datetime.fromisoformat(text)  # ten times as fast as strptime
    except ValueError as error:
        raise InvalidInputError(f"not a time: {text!r}") from error


def _parse(document: dict[str, Any]) -> Manifest:
    disks = {parse_disk_key(key): _parse_disk(value) for key, value in document["disks"].items()}
    if not disks:
        raise ValueError("no disks")
    previous = document["previous"]
    vm = document["vm"]
    return Manifest(
        item=parse_item_id(document["item"]),
        name=_text(document["name"]),
        epoch=Epoch(_integer(document["epoch"], least=1)),
        sequence=Sequence(_integer(document["sequence"], least=1, most=SEQUENCE_MAX)),
        time=parse_time(document["time"]),
        consistency=Consistency(document["consistency"]),
        kind=PointKind(document["kind"]),
        previous=None if previous is None else parse_digest(previous),
        disks=disks,
        vm=VmDefinition(format=_text(vm["format"]), text=_text(vm["text"])),
        replaces=tuple(parse_digest(digest) for digest in document["replaces"]),
        labels={_text(key): _text(value) for key, value in document["labels"].items()},
    )


def _parse_disk(value: dict[str, Any]) -> DiskPoint:
    size = _integer(value["size"], least=SECTOR)
    if size % SECTOR:
        raise ValueError(f"disk size {size} is not a multiple of {SECTOR}")
    zeros = value["zeros"]
    return DiskPoint(
        size=size,
        logs=tuple(_parse_file(log) for log in value["logs"]),
        zeros=None if zeros is None else _parse_file(zeros),
        changed=_integer(value["changed"], least=0),
    )


def _parse_file(value: dict[str, Any]) -> FileRef:
    return FileRef(digest=parse_digest(value["digest"]), length=_integer(value["length"], least=1))


def _integer(value: object, *, least: int, most: int = (1 << 63) - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"not an integer from {least} to {most}: {value!r}"[:200])
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text: {value!r}")
    value.encode()  # JSON can name half a surrogate pair, which no UTF-8 can hold: a ValueError
    return value
