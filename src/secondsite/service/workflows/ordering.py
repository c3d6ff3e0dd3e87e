"""Giving an order to a node and waiting for its answer, within a step of a run: what `Run.command` is made of.

Safe to repeat: an order is put once under its id, and its first outcome stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from secondsite.errors import TimeoutExceededError, UnavailableError
from secondsite.model.ids import CommandId
from secondsite.service.store import commands, items
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Command, Json
from secondsite.service.vocabulary import CommandState
from secondsite.service.workflows.limits import Limit

if TYPE_CHECKING:
    from secondsite.service.workflows.run import Run


def put(
    run: Run,
    command_id: CommandId,
    kind: str,
    node: str,
    item: str,
    epoch: int,
    args: Json,
    with_key: bool,
) -> None:
    """Put the order, unless it is there. `with_key` adds the item's digest key."""
    with run.ctx.store.transaction() as tx:
        # Locked, since the monitor gives orders of the item, too, and each is put once.
        locked = items.get(tx, item, lock=True)
        if with_key:
            args = {**args, "digest_key": locked.digest_key.hex()}
        commands.put(
            tx,
            {
                "id": command_id,
                "node_id": node,
                "item_id": item,
                "job_id": run.job_id,
                "kind": kind,
                "epoch": epoch,
                "args": args,
                "created": run.ctx.clock(),
            },
        )


def answered(
    run: Run,
    command_id: CommandId,
    ordinal: int,
    limit: Limit,
    unless: Callable[[Transaction], bool] | None,
) -> Command:
    """Wait for the order's outcome, showing its progress in the task; see `Run.command` for what is raised."""
    shown: Json | None = None

    def look(waited_s: float) -> Command | None:
        nonlocal shown
        with run.ctx.store.reading() as tx:
            command = commands.find(tx, command_id)
            needless = unless is not None and unless(tx)
        assert command is not None
        if command.state.ended:
            return command
        if needless:
            _unanswered(run, command, limit, f"{command.kind} was not answered")
        if command.progress is not None and command.progress != shown:
            shown = command.progress
            run.show_progress(ordinal, shown)
        if command.state is CommandState.PENDING and waited_s > limit.delivery_s:
            _undelivered(run, command, limit)
        if waited_s > limit.total_s:
            _unanswered(run, command, limit, f"{command.kind} was not answered within {limit.total_s:.0f} s")
        return None

    found: Command = run.wait(look)
    return found


def _undelivered(run: Run, command: Command, limit: Limit) -> None:
    error = UnavailableError(
        f"the node did not fetch the command {command.kind} within {limit.delivery_s:.0f} s",
        hint="start the node, or mend its connection to the service, and try again",
        node=command.node_id,
        command=command.id,
        undelivered=True,
        withdrawn=limit.withdraw,
    )
    if limit.withdraw:
        with run.ctx.store.transaction() as tx:
            withdrawn = commands.withdraw(tx, command, error.to_dict(), run.ctx.clock())
        if not withdrawn:
            return  # it was fetched at the last moment: go on waiting for its result
    raise error


def _unanswered(run: Run, command: Command, limit: Limit, message: str) -> None:
    error = TimeoutExceededError(
        message,
        hint="the node may still be at it: look at its log",
        command=command.id,
        unanswered=True,
    )
    if limit.withdraw:
        # What the run gives up must never be handed out again: what it orders next may contradict it.
        with run.ctx.store.transaction() as tx:
            ended = commands.give_up(tx, command, error.to_dict(), run.ctx.clock())
        if not ended:
            return  # it was answered at the last moment
    raise error
