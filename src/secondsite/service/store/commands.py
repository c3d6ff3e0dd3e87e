"""Commands to nodes: put once, delivered until there is a result, answered once."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from secondsite.model.ids import CommandId, NodeId
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Command
from secondsite.service.store.tables import commands
from secondsite.service.vocabulary import CommandState

OPEN: Final = (CommandState.PENDING.value, CommandState.DELIVERED.value)
SECRETS: Final = frozenset({"digest_key"})
"""Arguments that are struck out once the command has a result: nobody needs them in a history."""


def put(tx: Transaction, values: dict[str, Any]) -> None:
    """Add a command unless its id is there, and wake whoever polls."""
    there = tx.execute(sa.select(commands.c.ordinal).where(commands.c.id == values["id"])).first()
    if there is None:
        tx.execute(
            sa.insert(commands).values(
                state=CommandState.PENDING.value, cancelled=False, deliveries=0, **values
            )
        )
    tx.wake()


def find(tx: Transaction, command_id: CommandId) -> Command | None:
    """Return a command, or None."""
    return rows.find(tx, Command, sa.select(commands).where(commands.c.id == command_id))


def deliverable(tx: Transaction, node_id: NodeId, running: Collection[str]) -> list[Command]:
    """Return what the node has to do and does not run yet, in order."""
    statement = (
        sa.select(commands)
        .where(commands.c.node_id == node_id, commands.c.state.in_(OPEN))
        .order_by(commands.c.ordinal)
        .limit(200)
    )
    return [command for command in rows.listed(tx, Command, statement) if command.id not in running]


def mark_delivered(tx: Transaction, delivered: Collection[CommandId], now: datetime) -> None:
    """Note that the commands were handed out (perhaps again)."""
    tx.execute(
        sa.update(commands)
        .where(commands.c.id.in_(list(delivered)))
        .values(
            state=CommandState.DELIVERED.value,
            deliveries=commands.c.deliveries + 1,
            delivered=sa.func.coalesce(commands.c.delivered, now),
        )
    )
    tx.wake()


def answer(
    tx: Transaction,
    command: Command,
    now: datetime,
    *,
    result: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> bool:
    """Record the outcome; False if there is one already (the first wins)."""
    done = tx.execute(
        sa.update(commands)
        .where(commands.c.id == command.id, commands.c.state.in_(OPEN))
        .values(
            state=(CommandState.FAILED if error is not None else CommandState.DONE).value,
            result=result,
            error=error,
            ended=now,
            args={key: value for key, value in command.args.items() if key not in SECRETS},
        )
    )
    tx.wake()
    return done.rowcount > 0


def note_progress(tx: Transaction, command_id: CommandId, progress: dict[str, Any]) -> None:
    """Keep the last progress of a command."""
    tx.execute(sa.update(commands).where(commands.c.id == command_id).values(progress=progress))
    tx.wake()


def cancel(tx: Transaction, command_id: CommandId) -> None:
    """Ask the node to stop it; what the node never saw is never delivered (see `withdraw`)."""
    tx.execute(sa.update(commands).where(commands.c.id == command_id).values(cancelled=True))


def withdraw(tx: Transaction, command: Command, error: dict[str, Any], now: datetime) -> bool:
    """End a command that was never delivered; False if it was delivered meanwhile."""
    done = tx.execute(
        sa.update(commands)
        .where(commands.c.id == command.id, commands.c.state == CommandState.PENDING.value)
        .values(
            state=CommandState.FAILED.value,
            error=error,
            ended=now,
            args={key: value for key, value in command.args.items() if key not in SECRETS},
        )
    )
    return done.rowcount > 0


def open_of_item(tx: Transaction, item_id: str) -> list[Command]:
    """Return the commands of an item that have no result yet."""
    return rows.listed(
        tx,
        Command,
        sa.select(commands)
        .where(commands.c.item_id == item_id, commands.c.state.in_(OPEN))
        .order_by(commands.c.ordinal),
    )
