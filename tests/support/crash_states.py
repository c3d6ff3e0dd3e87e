"""Every state that a power cut may leave, from what a disk was told.

The rules are POSIX's as crash-consistency work reads them (ALICE): what was not synced may be there or not, each effect for
itself, in any order.

- A write may be there in part: any of its prefixes and some suffixes at borders of 512 bytes and 4 KiB, or with holes.
- A file may have its new size without the data: it reads as zeros there.
- Names in a folder change one by one: a rename within a folder as a whole, one between folders also by halves.
- A sync of a file says nothing of its name, nor of its folder's name; a sync of a folder nothing of the files in it.

What it does not do: writes of one file take effect in their order (a later one never lies under an earlier), what nobody wrote
is never garbage, and what was synced never decays. Where one cut has more than `limit` states, those that `choices` names are built, and the cut is counted as bounded.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from support.crash_disk import (
    Disk,
    Effect,
    Entry,
    Names,
    Punch,
    Resize,
    Sync,
    Tree,
    Write,
    change_bytes,
    change_names,
)

SECTOR: Final = 512
PAGE: Final = 4096
_BORDERS_MAX: Final = 6
_PAIRS_MAX: Final = 16

Variant: TypeAlias = tuple[Effect, ...]
"""What is there of one effect: nothing, all of it, or parts."""


@dataclass(frozen=True, slots=True)
class CutState:
    """One state. `choice`: the number of each pending effect's variant, in order; 0 is absent, 1 whole."""

    tree: Tree
    choice: tuple[int, ...]


class Cuts:
    """Goes forward through a log, and builds the states of a cut where it stands."""

    def __init__(self, start: Disk, log: Sequence[Entry], folders: Collection[int]) -> None:
        """`folders`: the inodes that are folders, of all that the log names."""
        self._durable = start.copy()
        for inode in folders:
            self._durable.folders.setdefault(inode, {})
        self._log = log
        self._at = 0
        self.pending: list[Effect] = []

    def forward(self, to: int) -> None:
        """Take in the entries before number `to`."""
        for entry in self._log[self._at : to]:
            if not isinstance(entry, Sync):
                self.pending.append(entry)
                continue
            for effect in self.pending:
                if effect.inode == entry.inode:
                    self._durable.apply(effect)
            self.pending = [effect for effect in self.pending if effect.inode != entry.inode]
        self._at = max(self._at, to)

    def count(self) -> int:
        """Return how many states there are here, by the rules."""
        return math.prod(len(variants) for variants in self._variants())

    def states(self, limit: int, seed: int = 0) -> Iterator[CutState]:
        """Yield the states here: all, or `limit` of them."""
        variants = self._variants()
        for choice in choices([len(each) for each in variants], limit, seed):
            yield CutState(self.build(variants, choice), choice)

    def nothing(self) -> Tree:
        """Return the state in which only what was synced is there."""
        return self._durable.tree()

    def everything(self) -> Tree:
        """Return the state in which all that was done is there."""
        variants = self._variants()
        return self.build(variants, (1,) * len(variants))

    def all_but(self, inode: int) -> Tree:
        """Return the state in which all is there but what was not synced of this file or folder."""
        variants = self._variants()
        return self.build(variants, tuple(int(effect.inode != inode) for effect in self.pending))

    def build(self, variants: list[list[Variant]], choice: tuple[int, ...]) -> Tree:
        """Return the tree with the chosen variants of what is pending."""
        files: dict[int, bytearray] = {}
        folders: dict[int, dict[str, int]] = {}
        for each, number in zip(variants, choice, strict=True):
            for effect in each[number]:
                if isinstance(effect, Names):
                    names = folders.setdefault(effect.inode, dict(self._durable.folders[effect.inode]))
                    change_names(names, effect)
                else:
                    data = files.setdefault(
                        effect.inode, bytearray(self._durable.files.get(effect.inode, b""))
                    )
                    change_bytes(data, effect)
        return Disk({**self._durable.files, **files}, {**self._durable.folders, **folders}).tree()

    def _variants(self) -> list[list[Variant]]:
        sizes: dict[int, int] = {}
        found: list[list[Variant]] = []
        for effect in self.pending:
            size = sizes.get(effect.inode, len(self._durable.files.get(effect.inode, b"")))
            found.append(variants_of(effect, size))
            if isinstance(effect, Write):
                sizes[effect.inode] = max(size, effect.offset + len(effect.data))
            elif isinstance(effect, Resize):
                sizes[effect.inode] = effect.size
        return found


def variants_of(effect: Effect, size: int) -> list[Variant]:
    """Return what may be there of an effect on a file of `size` bytes: absent, whole, then parts."""
    found: list[Variant] = [(), (effect,)]
    if isinstance(effect, Write):
        found += [tuple(_part(effect, *span) for span in spans) for spans in _torn(effect)]
        end = effect.offset + len(effect.data)
        if end > size:
            found.append((Resize(effect.inode, end),))
    elif isinstance(effect, Punch):
        for border in _borders(effect.offset, effect.length, PAGE):
            found.append((Punch(effect.inode, effect.offset, border - effect.offset),))
            found.append((Punch(effect.inode, border, effect.offset + effect.length - border),))
    return found


def choices(counts: Sequence[int], limit: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Yield choices of one number below each count: all if they are at most `limit`.

    Else, in this order and each once, until the limit: nothing and everything; everything before one effect, with each of
    its variants, and nothing after it; each variant of one effect with all others absent, and with all others there; each pair of
    (the first 16) effects alone, and all without them; then by a seeded dice.
    """
    if math.prod(counts) <= limit:
        yield from itertools.product(*(range(count) for count in counts))
        return
    seen: set[tuple[int, ...]] = set()
    for choice in itertools.chain(_families(counts), _thrown(counts, seed)):
        if choice not in seen:
            seen.add(choice)
            yield choice
            if len(seen) == limit:
                return


def write_tree(tree: Tree, target: Path) -> None:
    """Build the state in `target`, an empty folder. Pages of zeros become holes."""
    for name, data in sorted(tree.items()):
        path = target / name
        if data is None:
            path.mkdir()
            continue
        with path.open("wb", buffering=0) as file:
            file.truncate(len(data))
            if not any(data):
                continue
            for at in range(0, len(data), PAGE):
                page = data[at : at + PAGE]
                if any(page):
                    file.seek(at)
                    file.write(page)


def _families(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    effects = range(len(counts))
    none, whole = (0,) * len(counts), (1,) * len(counts)
    yield none
    yield whole
    for at in effects:
        for variant in range(1, counts[at]):
            yield (*whole[:at], variant, *none[at + 1 :])
    for at in effects:
        for variant in range(counts[at]):
            yield (*none[:at], variant, *none[at + 1 :])
            yield (*whole[:at], variant, *whole[at + 1 :])
    for pair in itertools.combinations(effects[:_PAIRS_MAX], 2):
        yield tuple(int(at in pair) for at in effects)
        yield tuple(int(at not in pair) for at in effects)


def _thrown(counts: Sequence[int], seed: int) -> Iterator[tuple[int, ...]]:
    dice = random.Random(seed)
    while True:
        yield tuple(dice.randrange(count) for count in counts)


def _torn(write: Write) -> list[list[tuple[int, int]]]:
    """The parts of a write that may be there, as lists of [start, end)."""
    start, end = write.offset, write.offset + len(write.data)
    sectors = _borders(start, len(write.data), SECTOR)
    if not sectors:
        return []
    pages = _borders(start, len(write.data), PAGE)
    borders = sorted({*pages[:2], *pages[-1:], *sectors[: _BORDERS_MAX // 2], sectors[-1]})[:_BORDERS_MAX]
    found = [[(start, border)] for border in borders]
    found += [[(border, end)] for border in (borders[0], borders[-1])]
    edges = [start, *sectors, end]
    if len(edges) > 3:
        found.append([(edges[at], edges[at + 1]) for at in range(0, len(edges) - 1, 2)])
    return found


def _borders(offset: int, length: int, unit: int) -> list[int]:
    first = (offset // unit + 1) * unit
    return list(range(first, offset + length, unit))


def _part(write: Write, start: int, end: int) -> Write:
    return Write(write.inode, start, write.data[start - write.offset : end - write.offset])
