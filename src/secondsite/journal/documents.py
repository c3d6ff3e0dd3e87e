"""The journal's small JSON documents: what it is, its epoch, and which point its base holds.

What it promises: a document reads back as it was written or raises CorruptError; it is replaced as a whole. Canonical
JSON with a checksum over it, compared byte by byte, so that no flipped bit is read over. Drawn in
docs/design/journal.md. What it does not do: no locks and no caches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from blake3 import blake3

from secondsite import durable
from secondsite.errors import CorruptError, InvalidInputError, NotFoundError, UnsupportedError
from secondsite.journal.base import BaseSpec
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
from secondsite.model.units import DIGEST_KEY_LENGTH

FORMAT: Final = "secondsite-journal/1"
_DOCUMENT_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """journal.json: what never changes, but for disks that grow (resize.py). Paths of raw bases are absolute here, relative
    in the file.
    """

    item: ItemId
    name: str
    key: bytes
    disks: dict[DiskKey, BaseSpec]


@dataclass(frozen=True, slots=True)
class BaseState:
    """base.json. `sequence` None: no point was sealed yet. `folding_to`: a fold has begun, points before it are gone."""

    sequence: Sequence | None = None
    manifest: Digest | None = None
    folding_to: Sequence | None = None

    @property
    def floor(self) -> Sequence:
        """The oldest sequence that may still be read."""
        return Sequence(self.folding_to or self.sequence or 0)


def encode(document: dict[str, Any]) -> bytes:
    """Return the bytes of a document, with its checksum."""
    body = _canonical(document)
    return _canonical({**document, "checksum": blake3(body).hexdigest()}) + b"\n"


def load(path: Path) -> dict[str, Any]:
    """Read a document and return it without its checksum.

    Raises:
        NotFoundError: there is no such file.
        CorruptError: any byte differs from what `encode` wrote.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_DOCUMENT_BYTES_MAX)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {path.name} in {path.parent}", path=str(path)) from error
    try:
        document = json.loads(data)
        document.pop("checksum")
        sound = encode(document) == data
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CorruptError(
            f"{path.name} is damaged: its checksum does not match",
            hint="restore the file from a copy of the journal; the points themselves may be sound",
            path=str(path),
        )
    return dict(document)


def encode_identity(identity: Identity, folder: Path) -> bytes:
    """Return the bytes of journal.json."""
    disks = {
        key: {
            "size": spec.size,
            **({} if spec.grown_from is None else {"grown_from": spec.grown_from}),
            "base": {
                "kind": spec.kind,
                "path": str(spec.path.relative_to(folder) if spec.kind == "raw" else spec.path),
                "format": spec.format,
            },
        }
        for key, spec in identity.disks.items()
    }
    return encode(
        {
            "format": FORMAT,
            "item": identity.item,
            "name": identity.name,
            "digest_key": identity.key.hex(),
            "disks": disks,
        }
    )


def load_identity(path: Path) -> Identity:
    """Read journal.json.

    Raises:
        UnsupportedError: a format that this version does not know.
    """
    document = load(path)
    if document.get("format") != FORMAT:
        raise UnsupportedError(
            f"journal format {document.get('format')!r} is not known",
            hint=f"this version reads {FORMAT}",
            path=str(path),
        )
    with _well_formed(path):
        key = bytes.fromhex(document["digest_key"])
        if len(key) != DIGEST_KEY_LENGTH:
            raise ValueError(f"a digest key of {len(key)} bytes")
        return Identity(
            item=parse_item_id(document["item"]),
            name=str(document["name"]),
            key=key,
            disks={
                parse_disk_key(disk): _base_spec(path.parent, disk, fields)
                for disk, fields in document["disks"].items()
            },
        )


def _base_spec(folder: Path, disk: str, fields: dict[str, Any]) -> BaseSpec:
    base = fields["base"]
    kind: Literal["raw", "image"] = "image" if base["kind"] == "image" else "raw"
    if kind == "raw" and base["path"] != f"base/{disk}.raw":
        # Only an adopted image lies elsewhere. Any other path would have us write outside of the journal.
        raise ValueError(f"disk {disk}: not the path of a raw base")
    return BaseSpec(
        kind=kind,
        path=folder / base["path"],
        format=str(base["format"]),
        size=_whole(fields["size"]),
        grown_from=_whole(fields["grown_from"]) if "grown_from" in fields else None,
    )


def encode_epoch(epoch: Epoch) -> bytes:
    """Return the bytes of epoch.json."""
    return encode({"epoch": epoch})


def load_epoch(path: Path) -> Epoch:
    """Read epoch.json."""
    document = load(path)
    with _well_formed(path):
        return Epoch(_whole(document["epoch"]))


def encode_base_state(state: BaseState) -> bytes:
    """Return the bytes of base.json."""
    if state.sequence is None:
        return encode({"state": "initial"})
    return encode(
        {
            "state": "ready",
            "sequence": state.sequence,
            "manifest": state.manifest,
            "folding_to": state.folding_to,
        }
    )


def load_base_state(path: Path) -> BaseState:
    """Read base.json."""
    document = load(path)
    with _well_formed(path):
        if document["state"] == "initial":
            return BaseState()
        folding_to = document["folding_to"]
        return BaseState(
            sequence=Sequence(_whole(document["sequence"])),
            manifest=parse_digest(document["manifest"]),
            folding_to=None if folding_to is None else Sequence(_whole(folding_to)),
        )


def replace(path: Path, data: bytes) -> None:
    """Replace a document durably."""
    durable.write_atomic(path, data)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 1 << 63:
        raise ValueError(f"not a number of at least 1: {str(value)[:40]}")
    return value


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class _well_formed:  # noqa: N801 - reads as a statement
    """Turn what a document of another shape raises into CorruptError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | ValueError | TypeError | AttributeError | InvalidInputError):
            raise CorruptError(f"{self._path.name} is malformed: {error}", path=str(self._path)) from error
