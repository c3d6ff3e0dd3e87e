"""What a node is told that asks whether it may run its machines: of each item, the epoch and the node that may write.

An item whose writable side is about to change, or is unknown, is left out: nobody is confirmed then.
"""

from __future__ import annotations

from typing import Any, Final

from secondsite.model.ids import NodeId
from secondsite.model.item import ItemState
from secondsite.service.context import Context
from secondsite.service.store import items

CHANGING: Final = frozenset(
    {
        ItemState.FAILING_OVER,
        ItemState.FAILING_OVER_UNPLANNED,
        ItemState.CHANGING_POINT,
        ItemState.CANCELLING,
    }
)


def standing_of(ctx: Context, node_id: NodeId) -> dict[str, Any]:
    """Return the answer to `GET /node/v1/standing`."""
    with ctx.store.reading() as tx:
        found: dict[str, Any] = {}
        for item in items.listed(tx, node=node_id):
            writable = items.writable(tx, item.id)
            if item.state in CHANGING or not writable:
                continue
            found[item.id] = {"epoch": item.epoch, "source": writable[-1].node_id, "name": item.name}
        return {"items": found}
