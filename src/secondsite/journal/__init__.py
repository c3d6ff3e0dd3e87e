"""The store of recovery points: a base, immutable logs, and chained manifests. Files only.

`Journal` is the way in. The format, and why a crash at any step is harmless, stand in docs/design/journal.md.
"""

from secondsite.journal.base import Base, BaseSpec, OpenBase, RawBase, open_raw_base
from secondsite.journal.journal import Journal, JournalStatus, Maintenance
from secondsite.journal.logs import FileKind, Incoming
from secondsite.journal.pins import Pin
from secondsite.journal.points import PointInfo
from secondsite.journal.removal import finish_deletes
from secondsite.journal.scrub import Finding, verify_folder
from secondsite.journal.seal import table_label
from secondsite.journal.view import DiskView, Extent, View

__all__ = [
    "Base",
    "BaseSpec",
    "DiskView",
    "Extent",
    "FileKind",
    "Finding",
    "Incoming",
    "Journal",
    "JournalStatus",
    "Maintenance",
    "OpenBase",
    "Pin",
    "PointInfo",
    "RawBase",
    "View",
    "finish_deletes",
    "open_raw_base",
    "table_label",
    "verify_folder",
]
