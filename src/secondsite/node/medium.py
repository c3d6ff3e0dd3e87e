"""A copy of a machine's disks on a medium: how `node export` leaves it, and how it is checked when it is read.

<folder>/<disk>.raw     the disk's contents, sparse
         export.json    {format, name, vm, time, disks: {<disk>: {file, size, blake3}}}, written last

What it promises: a file whose contents differ from what was exported by one bit is found, by its name. What it does not
do: hide the contents from who finds the medium (encrypt it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from secondsite.errors import CorruptError, InvalidInputError, UnavailableError, UnsupportedError
from secondsite.model.ids import DiskKey, parse_disk_key
from secondsite.model.units import MIB

EXPORT_FILE: Final = "export.json"
EXPORT_FORMAT: Final = "secondsite-export/1"
_EXPORT_BYTES_MAX: Final = MIB
_ZEROS: Final = memoryview(bytes(16 * MIB))


@dataclass(frozen=True, slots=True)
class ExportedDisk:
    """One file of an export. `blake3`: of all its bytes, holes included, so that `b3sum` tells the same."""

    file: str
    size: int
    blake3: str


@dataclass(frozen=True, slots=True)
class Export:
    """What export.json says. `vm` is the machine's UUID, `time` the instant of all disks."""

    name: str
    vm: str
    time: str
    disks: Mapping[DiskKey, ExportedDisk]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"format": EXPORT_FORMAT, **asdict(self)}


def load_export(folder: Path) -> Export | None:
    """Return what the folder's export.json says, None if there is none.

    Raises:
        CorruptError: it does not parse.
        UnavailableError: the medium cannot be read.
        UnsupportedError: a later version wrote it.
    """
    path = folder / EXPORT_FILE
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_EXPORT_BYTES_MAX))
        if fields["format"] != EXPORT_FORMAT:
            raise UnsupportedError(
                f"{path} has the format {fields['format']!r}"[:200], hint="upgrade this node", path=str(path)
            )
        disks = {
            parse_disk_key(key): ExportedDisk(str(disk["file"]), int(disk["size"]), str(disk["blake3"]))
            for key, disk in fields["disks"].items()
        }
        return Export(str(fields["name"]), str(fields["vm"]), str(fields["time"]), disks)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except (InvalidInputError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{path} does not parse", hint="export the machine again", path=str(path)
        ) from error


class ContentDigest:
    """The BLAKE3 of a disk whose data comes in ascending order; what is between reads as zeros."""

    def __init__(self) -> None:
        self._hash = blake3(max_threads=blake3.AUTO)
        self._at = 0

    def add(self, offset: int, data: memoryview) -> None:
        """Take the bytes at `offset`."""
        self._zeros(offset - self._at)
        self._hash.update(data)
        self._at = offset + len(data)

    def finish(self, size: int) -> str:
        """Return the digest of a disk of `size` bytes."""
        self._zeros(size - self._at)
        self._at = size
        return self._hash.hexdigest()

    def _zeros(self, count: int) -> None:
        if count < 0:
            raise ValueError("the data does not come in ascending order")
        while count:
            piece = _ZEROS[: min(count, len(_ZEROS))]
            self._hash.update(piece)
            count -= len(piece)
