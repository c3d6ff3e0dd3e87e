"""What sender and listener agree on: paths, headers, bounds, documents. docs/design/ship-protocol.md is its prose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from secondsite.errors import InvalidInputError
from secondsite.model.ids import Digest, Epoch, ItemId, parse_digest
from secondsite.model.ids import Sequence as PointSequence
from secondsite.model.manifest import format_time, parse_time
from secondsite.model.units import MIB, PART_DATA_MAX

SESSION_PATH: Final = "/ship/v1/session"
ITEM_PATH: Final = "/ship/v1/items/{item}"
MISSING_PATH: Final = ITEM_PATH + "/missing"
PART_PATH: Final = ITEM_PATH + "/parts/{digest}"
INITIAL_PATH: Final = ITEM_PATH + "/initial"
POINTS_PATH: Final = ITEM_PATH + "/points"
DIGESTS_PATH: Final = ITEM_PATH + "/digests"

EPOCH_HEADER: Final = "Secondsite-Epoch"
LENGTH_HEADER: Final = "Secondsite-Length"
"""Length in bytes of the part's file before compression: what the listener bounds the expansion by."""

PART_FILE_MAX: Final = PART_DATA_MAX + 8 * MIB
"""A part's file: data, and at most so much of headers and metadata (32 bytes an entry; 4.5 MiB for 64 MiB in sectors)."""
PART_WIRE_MAX: Final = PART_FILE_MAX + MIB
"""zstd adds less than 0.5 % to data that does not shrink."""
PARTS_PER_CALL_MAX: Final = 4096
CELLS_PER_CALL_MAX: Final = 1 << 24
RANGES_PER_CALL_MAX: Final = 65536
CELL_BYTES: Final = 8
ZSTD_WINDOW_MAX: Final = 8 * MIB

NUMBER_MAX: Final = (1 << 63) - 1


class PartKind(StrEnum):
    """What a part's file holds; its name's ending in the journal."""

    LOG = "hrl"
    ZEROS = "zeros"


class Encoding(StrEnum):
    """How a part travels."""

    IDENTITY = "identity"
    ZSTD = "zstd"


class PartRef(NamedTuple):
    """A part by name."""

    digest: Digest
    kind: PartKind


class CellRange(NamedTuple):
    """Cells of a digest table: blocks `first` to `first + cells - 1`."""

    first: int
    cells: int


@dataclass(frozen=True, slots=True)
class LastPoint:
    """The newest point of a replica."""

    sequence: PointSequence
    digest: Digest
    epoch: Epoch
    time: datetime


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What the target says of an item. `state` is "initial" until the first point is sealed, then "ready"."""

    epoch: Epoch
    state: str
    last: LastPoint | None

    def to_dict(self) -> dict[str, Any]:
        """Return the wire form."""
        last = self.last
        return {
            "epoch": self.epoch,
            "state": self.state,
            "last": None
            if last is None
            else {
                "sequence": last.sequence,
                "digest": last.digest,
                "epoch": last.epoch,
                "time": format_time(last.time),
            },
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ReplicaStatus:
        """Parse the wire form; InvalidInputError if it is none."""
        state, last = document.get("state"), document.get("last")
        if state not in {"initial", "ready"}:
            raise InvalidInputError(f"not a replica's state: {state!r}")
        epoch = Epoch(parse_number(document.get("epoch"), "epoch", least=1))
        if last is None:
            return cls(epoch, state, None)
        if not isinstance(last, dict):
            raise InvalidInputError("the last point is no object")
        return cls(
            epoch,
            state,
            LastPoint(
                PointSequence(parse_number(last.get("sequence"), "sequence", least=1)),
                parse_digest(last.get("digest")),
                Epoch(parse_number(last.get("epoch"), "epoch", least=1)),
                parse_time(last.get("time")),
            ),
        )


def item_path(template: str, item: ItemId, digest: Digest | None = None) -> str:
    """Fill in a path."""
    return template.format(item=item, digest=digest)


def parse_kind(text: object) -> PartKind:
    """Return a part's kind; InvalidInputError if it is none."""
    try:
        return PartKind(text)  # type: ignore[arg-type]
    except ValueError:
        raise InvalidInputError(f"not a kind of part: {text!r}", hint="hrl or zeros") from None


def parse_number(value: object, name: str, *, least: int = 0) -> int:
    """Return a whole number from JSON."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= NUMBER_MAX:
        raise InvalidInputError(f"{name} is not a number of at least {least}: {value!r}"[:200])
    return value


def parse_header_number(text: str | None, name: str, *, least: int = 0) -> int:
    """Return a whole number from a header: decimal digits and nothing else."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InvalidInputError(f"the header {name} is missing or no number")
    return parse_number(int(text), name, least=least)


def parse_parts(value: object) -> list[PartRef]:
    """Parse `[{"digest": ..., "kind": ...}, ...]`."""
    return [
        PartRef(parse_digest(part.get("digest")), parse_kind(part.get("kind")))
        for part in _objects(value, "parts", PARTS_PER_CALL_MAX)
    ]


def parse_digests(value: object) -> list[Digest]:
    """Parse a list of digests."""
    return [parse_digest(digest) for digest in _items(value, "digests", PARTS_PER_CALL_MAX)]


def parse_ranges(value: object) -> list[CellRange]:
    """Parse `[[first, cells], ...]`, at most CELLS_PER_CALL_MAX cells in all."""
    ranges: list[CellRange] = []
    for pair in _items(value, "ranges", RANGES_PER_CALL_MAX):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InvalidInputError("a range is a pair of numbers")
        ranges.append(CellRange(parse_number(pair[0], "first"), parse_number(pair[1], "cells", least=1)))
    if sum(part.cells for part in ranges) > CELLS_PER_CALL_MAX:
        raise InvalidInputError("too many cells in one call", limit=CELLS_PER_CALL_MAX)
    return ranges


def _items(value: object, name: str, limit: int) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise InvalidInputError(f"{name} is not a list of at most {limit}")
    return value


def _objects(value: object, name: str, limit: int) -> Sequence[Mapping[str, Any]]:
    items = _items(value, name, limit)
    if not all(isinstance(item, dict) for item in items):
        raise InvalidInputError(f"{name} is not a list of objects")
    return items
