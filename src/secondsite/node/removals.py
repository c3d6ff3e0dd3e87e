"""Which nodes were removed from the vault: told by the service, kept on disk, asked by our listeners at every request.

Promises: a removed node stays removed here, also when the service is away, when this node restarts, and when a service that was restored from
an older copy knows nothing of it (ids are never used twice). A damaged file is no reason not to start: the service is asked for the whole list again.

It does not decide what a node may do with an item: the receiver does, and a removed node has no part in any.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from secondsite import durable
from secondsite.errors import InvalidInputError
from secondsite.model.ids import NodeId

log = structlog.get_logger(__name__)


class Removals:
    """The set, and the service's mark of the list that we took last. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._nodes: frozenset[NodeId] = frozenset()
        self.mark = ""
        try:
            self._nodes, self.mark = _parse(json.loads(path.read_text()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, InvalidInputError) as error:
            log.warning("the list of removed nodes does not parse; asking for it again", reason=str(error))

    def __contains__(self, node: object) -> bool:
        return node in self._nodes

    def take(self, document: object) -> None:
        """Take what the service says, `{"nodes": [...], "mark": ...}`; it holds at once and is durable on return."""
        nodes, mark = _parse(document)
        with self._lock:
            new = nodes - self._nodes
            self._nodes |= nodes
            fields = {"nodes": sorted(self._nodes), "mark": mark}
            durable.write_atomic(self._path, json.dumps(fields, indent=1).encode())
            self.mark = mark
        if new:
            log.warning("nodes were removed from the vault; they are refused", nodes=sorted(new))


def _parse(document: object) -> tuple[frozenset[NodeId], str]:
    fields: Mapping[str, Any] = document if isinstance(document, dict) else {}
    nodes, mark = fields.get("nodes"), fields.get("mark")
    if (
        not isinstance(nodes, list)
        or not all(isinstance(node, str) for node in nodes)
        or not isinstance(mark, str)
    ):
        raise InvalidInputError("this is no list of removed nodes")
    return frozenset(NodeId(node) for node in nodes), mark
