"""Commands to nodes: put once, delivered until there is a result, answered once.

A command that nobody wants any more is *given up*: it ends as failed, and `cancelled` says that the node did not say
so. From then on it is never delivered, whatever the node did with it, and a result that still comes is not taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from secondsite.errors import UnavailableError
from secondsite.model.ids import CommandId, NodeId
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Command
from secondsite.service.store.tables import commands
from secondsite.service.vocabulary import CommandState

OPEN: Final = (CommandState.PENDING.value, CommandState.DELIVERED.value)
UNDOES: Final[Mapping[str, frozenset[str]]] = {
    "source.prepare": frozenset({"source.release"}),
    "source.release": frozenset({"source.prepare", "source.demote"}),
    "source.demote": frozenset(
        {"source.prepare", "source.release", "source.pause", "source.resume", "source.resync"}
    ),
    "source.pause": frozenset({"source.resume"}),
    "source.resume": frozenset({"source.pause"}),
    "target.failover": frozenset({"target.abandon"}),
    "target.abandon": frozenset({"target.failover"}),
}
"""The orders that an order takes back. Were both open, a node that lost its memory could be handed the older one last,
and start a machine that the younger one has just forbidden."""
SECRETS: Final = frozenset({"digest_key"})
"""Arguments that are struck out once the command has a result: nobody needs them in a history."""


def put(tx: Transaction, values: dict[str, Any]) -> None:
    """Add a command unless its id is there, and wake whoever polls.

    Open commands to the same node and item that this one undoes are given up in this transaction.
    """
    there = tx.execute(sa.select(commands.c.ordinal).where(commands.c.id == values["id"])).first()
    if there is None:
        undone = UNDOES.get(values["kind"], frozenset())
        if undone and values.get("item_id") is not None:
            for command in open_of_item(tx, values["item_id"]):
                if command.node_id == values["node_id"] and command.kind in undone:
                    give_up(tx, command, _undone_by(values["kind"]), values["created"])
        tx.execute(
            sa.insert(commands).values(
                state=CommandState.PENDING.value, cancelled=False, deliveries=0, **values
            )
        )
    tx.call()


def find(tx: Transaction, command_id: CommandId) -> Command | None:
    """Return a command, or None."""
    return rows.find(tx, Command, sa.select(commands).where(commands.c.id == command_id))


def deliverable(
    tx: Transaction, node_id: NodeId, running: Collection[str], *, lock: bool = False
) -> list[Command]:
    """Return what the node has to do and does not run yet, in order; nothing that was given up.

    `lock`: nobody else may end them before this transaction does.
    """
    statement = (
        sa.select(commands)
        .where(
            commands.c.node_id == node_id, commands.c.state.in_(OPEN), commands.c.cancelled.is_(sa.false())
        )
        .order_by(commands.c.ordinal)
        .limit(200)
    )
    if lock:
        statement = statement.with_for_update()
    return [command for command in rows.listed(tx, Command, statement) if command.id not in running]


def mark_delivered(tx: Transaction, delivered: Collection[CommandId], now: datetime) -> None:
    """Note that the commands were handed out (perhaps again)."""
    tx.execute(
        sa.update(commands)
        .where(commands.c.id.in_(list(delivered)), commands.c.state.in_(OPEN))
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


def give_up(tx: Transaction, command: Command, error: dict[str, Any], now: datetime) -> bool:
    """End a command that nobody waits for any more: it is never delivered again; False if it has an outcome.

    A node that runs it learns at its next progress that it should stop; its result is not taken.
    """
    done = tx.execute(
        sa.update(commands)
        .where(commands.c.id == command.id, commands.c.state.in_(OPEN))
        .values(
            state=CommandState.FAILED.value,
            cancelled=True,
            error=error,
            ended=now,
            args={key: value for key, value in command.args.items() if key not in SECRETS},
        )
    )
    tx.wake()
    return done.rowcount > 0


def give_up_all(tx: Transaction, given_up: Collection[Command], error: dict[str, Any], now: datetime) -> None:
    """Give up several commands."""
    for command in given_up:
        give_up(tx, command, error, now)


def open_of_job(tx: Transaction, job_id: str) -> list[Command]:
    """Return the commands of a job that have no result yet."""
    return rows.listed(
        tx,
        Command,
        sa.select(commands)
        .where(commands.c.job_id == job_id, commands.c.state.in_(OPEN))
        .order_by(commands.c.ordinal),
    )


def _undone_by(kind: str) -> dict[str, Any]:
    return UnavailableError(f"it was taken back: {kind} was ordered instead").to_dict()


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
