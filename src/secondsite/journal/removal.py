"""Removes journals, and the images that were adopted as their bases if so asked.

What it promises: one rename takes the journal away, and its new name says whether the images go too; what a cut leaves is
known by that name, and `finish_deletes` does the rest. Images go before the folder, whose journal.json names them. An image
that a journal beside it uses (again) stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Final

from secondsite import durable
from secondsite.errors import NotFoundError
from secondsite.journal import documents

_ALONE: Final = f"{durable.TEMPORARY_MARK}gone-"
_WITH_IMAGES: Final = f"{durable.TEMPORARY_MARK}images-"


def take_name(folder: Path, *, remove_images: bool) -> Path:
    """Make a journal's folder one that is no journal any more, durably; return its new path. `finish` does the rest."""
    mark = _WITH_IMAGES if remove_images else _ALONE
    doomed = folder.with_name(f"{folder.name}{mark}{secrets.token_hex(6)}")
    durable.rename_durable(folder, doomed)
    return doomed


def finish(doomed: Path, spare: Collection[Path] = ()) -> None:
    """Remove what `take_name` left, also after a cut, and the images but those in `spare`.

    Raises:
        CorruptError: its journal.json is damaged, so nobody knows the images. Everything stays.
    """
    if _WITH_IMAGES in doomed.name:
        for image in _images(doomed):
            if image not in spare and not image.is_block_device():
                image.unlink(missing_ok=True)
                if image.parent.is_dir():
                    durable.fsync_dir(image.parent)
    durable.remove_tree(doomed)


def finish_deletes(parent: Path, *, name: str = "*", spare: Collection[Path] = ()) -> int:
    """Finish what cut deletes of journals in `parent` left (those called `name`); return how many.

    Only while nobody deletes there. Images in `spare`, and those of journals in `parent`, stay.

    Raises:
        CorruptError: a journal.json there is damaged, so nobody knows whose images are whose. Nothing was removed.
    """
    if not parent.is_dir():
        return 0
    doomed = [path for mark in (_ALONE, _WITH_IMAGES) for path in parent.glob(f"{name}{mark}*")]
    if not doomed:
        return 0
    durable.fsync_name(doomed[0])  # or half a journal could be back under its own name
    used = set(spare)
    for folder in parent.iterdir():
        if folder.is_dir() and durable.TEMPORARY_MARK not in folder.name:
            used.update(_images(folder))
    for path in doomed:
        finish(path, used)
    return len(doomed)


def _images(folder: Path) -> list[Path]:
    """Return the images that are bases of the journal; none if its description is gone, since they go before it."""
    try:
        identity = documents.load_identity(folder / "journal.json")
    except NotFoundError:
        return []
    return [spec.path for spec in identity.disks.values() if spec.kind == "image"]
