"""Planted bugs: each breaks one rule of the journal's order of steps, and the crash-point sweep must see it.

A bug is put into the real code while the workloads run and while their states are checked. It names a workload that shows it,
so that a bounded run needs no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from support import crash_plants as plants


@dataclass(frozen=True, slots=True)
class Bug:
    """what: the rule that is broken. workloads: names of some that show it."""

    name: str
    what: str
    workloads: tuple[str, ...]
    plant: plants.Plant


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Have the bug in the code."""
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        yield


BUGS: Final = [
    Bug(
        "data-not-synced",
        "a log gets its name before its data are synced",
        ("seal data",),
        plants.data_not_synced,
    ),
    Bug(
        "log-named-later",
        "the manifest is durable before the name of its log is",
        ("seal data",),
        plants.log_named_later,
    ),
    Bug(
        "rename-before-fsync",
        "a manifest gets its name, then its data are synced",
        ("seal nothing",),
        plants.point_write(sync_file=True, sync_folder=True, late=True),
    ),
    Bug(
        "folder-not-synced",
        "a manifest's folder is not synced after the rename",
        ("seal nothing",),
        plants.point_write(sync_file=True, sync_folder=False),
    ),
    Bug(
        "answered-before-fsync",
        "a seal is acknowledged before anything of the manifest is synced",
        ("seal nothing",),
        plants.point_write(sync_file=False, sync_folder=False),
    ),
    Bug(
        "logs-not-synced-at-opening",
        "a name that a killed process left is trusted before it is durable",
        ("killed: seal",),
        plants.logs_not_synced_at_opening,
    ),
    Bug(
        "name-not-synced-at-opening",
        "the journal's own name is trusted before it is durable",
        ("killed: create",),
        plants.name_not_synced_at_opening,
    ),
    Bug(
        "base-not-synced",
        "the base is named as the next point before its data are synced",
        ("fold one point",),
        plants.base_not_synced,
    ),
    Bug(
        "tables-not-synced",
        "the digest tables are never synced",
        ("fold one point",),
        plants.tables_not_synced,
    ),
    Bug(
        "no-switch-before-the-fold",
        "the fold writes the base before it gives the old points up",
        ("fold one point",),
        plants.no_switch_before_the_fold,
    ),
    Bug(
        "fold-done-before-it-is",
        "base.json names the new point before the base is written",
        ("fold one point",),
        plants.fold_done_before_it_is,
    ),
    Bug(
        "logs-unlinked-before-the-fold-ends",
        "logs go before base.json names the folded base",
        ("fold one point",),
        plants.logs_unlinked_before_the_fold_ends,
    ),
    Bug(
        "points-gone-before-the-merged-one",
        "a thinning unlinks before the replacement is durable",
        ("thin zeros",),
        plants.points_gone_before_the_merged_one,
    ),
    Bug(
        "first-switch-before-its-manifest",
        "base.json names the first point before its manifest is there",
        ("first seal of zeros",),
        plants.first_switch_before_its_manifest,
    ),
    Bug(
        "cells-not-unknown",
        "a part is applied without marking its cells unknown before",
        ("replicate",),
        plants.cells_not_unknown,
    ),
    Bug(
        "documents-not-synced",
        "a journal's documents are not synced when it gets its name",
        ("create",),
        plants.documents_not_synced,
    ),
    Bug(
        "grown-before-it-is-said",
        "the base grows before journal.json says so",
        ("grow",),
        plants.grown_before_it_is_said,
    ),
    Bug(
        "deleted-in-place",
        "a journal is deleted file by file under its own name",
        ("delete",),
        plants.deleted_in_place,
    ),
    Bug(
        "tables-gone-before-the-journal",
        "an adoption moves the tables before the journal has its name",
        ("adopt",),
        plants.tables_gone_before_the_journal,
    ),
    Bug(
        "extract-not-synced",
        "an extracted image gets its name before its data are synced",
        ("extract",),
        plants.extract_not_synced,
    ),
    Bug(
        "pin-not-durable",
        "a lasting pin is acknowledged before its name is synced",
        ("pin and unpin",),
        plants.pin_not_durable,
    ),
    Bug(
        "epoch-not-durable",
        "a raised epoch is acknowledged before its name is synced",
        ("raise the epoch",),
        plants.epoch_not_durable,
    ),
]
