"""Distinct types for identifiers, so that two bare strings never stand in a row, and the parsers for them."""

from __future__ import annotations

import re
from typing import NewType

from secondsite.errors import InvalidInputError

VaultId = NewType("VaultId", str)
SiteId = NewType("SiteId", str)
CloudId = NewType("CloudId", str)
PolicyId = NewType("PolicyId", str)
NodeId = NewType("NodeId", str)
ItemId = NewType("ItemId", str)
JobId = NewType("JobId", str)
GroupId = NewType("GroupId", str)
CommandId = NewType("CommandId", str)
DiskKey = NewType("DiskKey", str)
"""The disk's target device in the guest's definition: "vda", "sdb"."""
Digest = NewType("Digest", str)
"""BLAKE3-256 as 64 lower-case hexadecimal digits."""
Epoch = NewType("Epoch", int)
"""Counts role changes of an item, from 1. Anything that carries an older epoch is refused."""
Sequence = NewType("Sequence", int)
"""Counts the recovery points of an item, from 1, across epochs; never reused."""

_HEX_64 = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DISK_KEY = re.compile(r"[a-z][a-z0-9]{0,15}")


def parse_digest(text: object) -> Digest:
    """Return `text` as a digest; raise InvalidInputError if it is none."""
    if not isinstance(text, str) or not _HEX_64.fullmatch(text):
        raise InvalidInputError(f"not a BLAKE3 digest: {text!r}", hint="expected 64 lower-case hex digits")
    return Digest(text)


def parse_item_id(text: object) -> ItemId:
    """Return `text` as an item id (a UUID in lower case, so it is safe as a folder's name)."""
    if not isinstance(text, str) or not _UUID.fullmatch(text):
        raise InvalidInputError(f"not an item id: {text!r}", hint="expected a UUID in lower case")
    return ItemId(text)


def parse_group_id(text: object) -> GroupId:
    """Return `text` as a consistency group's id (a UUID in lower case, so it is safe as a file's name)."""
    if not isinstance(text, str) or not _UUID.fullmatch(text):
        raise InvalidInputError(f"not a group id: {text!r}", hint="expected a UUID in lower case")
    return GroupId(text)


def parse_disk_key(text: object) -> DiskKey:
    """Return `text` as a disk key such as "vda" (safe as a file's name)."""
    if not isinstance(text, str) or not _DISK_KEY.fullmatch(text):
        raise InvalidInputError(f"not a disk key: {text!r}", hint='expected a target device such as "vda"')
    return DiskKey(text)
