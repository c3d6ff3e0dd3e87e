"""Makes the disks of a lab guest: label, record area and an ext4 file system, in qcow2 or raw, thin.

A disk is first a sparse raw file, so that its maximum size costs no time. Needs no root: nothing is mounted.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from secondsite.errors import InvalidInputError
from secondsite.lab.guest.layout import LABEL_OFFSET, Layout
from secondsite.lab.tools import run

RECORD_AREA: Final = 16 << 20
_LETTERS: Final = "abcdefghijklmnop"
_INODE_RATIO: Final = 1 << 20
"""Bytes of disk per inode: a huge thin disk would else begin with gigabytes of tables."""


def create_disks(
    folder: Path,
    name: str,
    *,
    count: int = 2,
    size: int = 1 << 30,
    image_format: str = "qcow2",
    record_area: int = RECORD_AREA,
    seed: int | None = None,
) -> list[Path]:
    """Make the disks NAME-vda.FORMAT, NAME-vdb.FORMAT ... in `folder`; return them in the guest's order.

    `size` and `record_area` in bytes, of each disk. `seed` makes the records this guest's own; random unless given.
    Fails if an image exists.
    """
    if image_format not in ("qcow2", "raw") or not 1 <= count <= len(_LETTERS):
        raise InvalidInputError(
            f"cannot make {count} disks of format {image_format!r}", hint="1 to 16, qcow2 or raw"
        )
    seed = secrets.randbits(64) if seed is None else seed
    images = []
    for disk in range(count):
        layout = Layout.of_size(size, disk=disk, disks=count, seed=seed, record_area=record_area)
        image = folder / f"{name}-vd{_LETTERS[disk]}.{image_format}"
        if image.exists():
            raise InvalidInputError(
                f"{image} exists", hint="choose another name, or delete the old guest's disks"
            )
        raw = image.with_name(f"{image.name}.tmp-{secrets.token_hex(4)}")
        try:
            _write_raw(raw, size, layout)
            if image_format == "qcow2":
                converted = raw.with_name(f"{raw.name}-2")
                run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(converted)])
                converted.rename(image)
            else:
                raw.rename(image)
        finally:
            raw.unlink(missing_ok=True)
        images.append(image)
    return images


def _write_raw(path: Path, size: int, layout: Layout) -> None:
    with path.open("xb") as file:
        file.truncate(size)
        file.write(layout.boot_sector())
        file.seek(LABEL_OFFSET)
        file.write(layout.label())
    options = (
        f"offset={layout.file_system_offset},lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
    )
    blocks = f"{layout.file_system_length // 1024}k"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-i", str(_INODE_RATIO), "-N", "1024"]
    if layout.file_system_length > 1 << 30:
        command = command[:-2]
    run([*command, "-J", "size=8", "-E", options, str(path), blocks])
