"""The store of recovery points: a base, immutable logs, and chained manifests. Files only.

`Journal` is the way in. The format, and why a crash at any step is harmless, stand in docs/design/journal.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from secondsite.journal.base import Base, BaseSpec, OpenBase, RawBase, open_raw_base
    from secondsite.journal.journal import Journal, JournalStatus, Maintenance
    from secondsite.journal.logs import FileKind, Incoming
    from secondsite.journal.pins import Pin
    from secondsite.journal.points import PointInfo
    from secondsite.journal.removal import finish_deletes
    from secondsite.journal.scrub import Finding, verify_folder
    from secondsite.journal.seal import table_label
    from secondsite.journal.view import DiskView, Extent, View
else:
    _MODULES: Final = {
        "Base": "base",
        "BaseSpec": "base",
        "DiskView": "view",
        "Extent": "view",
        "FileKind": "logs",
        "Finding": "scrub",
        "Incoming": "logs",
        "Journal": "journal",
        "JournalStatus": "journal",
        "Maintenance": "journal",
        "OpenBase": "base",
        "Pin": "pins",
        "PointInfo": "points",
        "RawBase": "base",
        "View": "view",
        "finish_deletes": "removal",
        "open_raw_base": "base",
        "table_label": "seal",
        "verify_folder": "scrub",
    }

    def __getattr__(name: str) -> Any:
        """Load a name when it is asked for: the process of a view takes a few modules, and a machine waits for it to start."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
