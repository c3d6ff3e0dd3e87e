"""Test failover and its clean-up. Replication goes on meanwhile and is never touched."""

from __future__ import annotations

from typing import Final

from secondsite.errors import RemoteError, SecondSiteError
from secondsite.model.item import Event
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Item, Json
from secondsite.service.workflows.facts import networks_between, read_facts
from secondsite.service.workflows.run import Run

START_TASKS: Final = ("start the test machine",)
CLEANUP_TASKS: Final = ("remove the test machine",)


def test_failover(run: Run) -> None:
    """Start a copy of the machine from a point at the target."""
    parameters = run.begin(START_TASKS).parameters
    try:
        facts = read_facts(run)
        networks = dict.fromkeys(facts["networks"])
        if parameters["network"] == "mapped":
            networks = networks_between(run, facts, test=True)
        started = run.command(
            0,
            "target.test_start",
            facts["target"],
            facts["item"],
            facts["epoch"],
            {"sequence": parameters["sequence"], "name": f"{facts['name']}-test", "networks": networks},
        )
        result = _described(started, "vm") | {
            "networks": networks,
            "node": facts["target_name"],
            "name": started.get("name", f"{facts['name']}-test"),
        }
    except SecondSiteError as error:
        run.finish(Event.FAILED, f"the test failover failed: {error.message}", error=error, test=True)
        return
    run.finish(
        Event.SUCCEEDED,
        f"the test machine {result['name']} runs from point {result.get('sequence')}",
        result=result,
        test=True,
        values=lambda _tx, _item: {"test": {**result, "began": run.ctx.clock().isoformat()}},
    )


def cleanup_test(run: Run) -> None:
    """Remove the copy. Only now does the test count as done."""
    run.begin(CLEANUP_TASKS)
    try:
        facts = read_facts(run)
        run.command(0, "target.test_cleanup", facts["target"], facts["item"], facts["epoch"], {})
    except SecondSiteError as error:
        run.finish(Event.FAILED, f"cleaning up the test failed: {error.message}", error=error, test=True)
        return

    def tested(_tx: Transaction, item: Item) -> Json:
        # A test that never ran (its start failed) was cleaned up but is no test.
        return {"test": None} | ({} if item.test is None else {"last_test_time": run.ctx.clock()})

    run.finish(Event.SUCCEEDED, "the test was cleaned up", result={}, test=True, values=tested)


def _described(started: Json, *required: str) -> Json:
    """Return the facts of a started machine; a node that answers without them has not done it."""
    missing = [key for key in required if not started.get(key)]
    if missing:
        raise RemoteError({"message": f"the node's answer lacks {', '.join(missing)}", "code": "unsupported"})
    return dict(started)
