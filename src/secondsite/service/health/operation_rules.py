"""Rules of an item's operations: failovers that are not finished, tests that were not done, points that wait. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from secondsite.model.item import ItemState, TestState
from secondsite.service.health.facts import ItemFacts
from secondsite.service.health.rule import Rule
from secondsite.service.health.vocabulary import Category, Level

COMMIT_LONG: Final = timedelta(hours=24)
TEST_DUE: Final = timedelta(days=182)
"""The field's advice: test at least every six months."""
TEST_LEFT: Final = timedelta(days=14)
"""The field ends a test by force after two weeks; we only say so."""
UNCOMMITTED: Final = frozenset(
    {ItemState.COMMIT_PENDING, ItemState.UNPLANNED_COMMIT_PENDING, ItemState.POINT_CHANGE_FAILED}
)
APPLICATION_SLACK: Final = timedelta(hours=1)


def _enable_failed(facts: ItemFacts) -> str | None:
    return "enabling protection failed" if facts.item.state is ItemState.ENABLE_FAILED else None


def _disable_failed(facts: ItemFacts) -> str | None:
    return "disabling protection failed" if facts.item.state is ItemState.DISABLE_FAILED else None


def _point_change_failed(facts: ItemFacts) -> str | None:
    failed = facts.item.state is ItemState.POINT_CHANGE_FAILED
    return "no point could be started, so nothing runs" if failed else None


def _operator_needed(facts: ItemFacts) -> str | None:
    return facts.waits_for


def _unprotected(facts: ItemFacts) -> str | None:
    if facts.item.state in UNCOMMITTED or facts.item.state is ItemState.COMMITTED:
        return "failed over and not reversed yet: nothing replicates"
    return None


def _commit_pending(facts: ItemFacts) -> str | None:
    since = facts.item.last_failover_time
    if facts.item.state not in UNCOMMITTED or since is None or facts.now - since <= COMMIT_LONG:
        return None
    return f"the failover has waited for its commit for {(facts.now - since).total_seconds() / 3600:.0f} h"


def _demotion(facts: ItemFacts) -> str | None:
    if facts.item.demotion is None:
        return None
    return "the old active side has not confirmed that it stepped back"


def _diverged(facts: ItemFacts) -> str | None:
    if facts.diverged is None or facts.item.deleted is not None:
        return None
    return f"point {facts.diverged} keeps what the old side wrote and nobody else has"


def _order(facts: ItemFacts) -> str | None:
    """Demotions have a rule of their own; an order that is answered at once is no news."""
    waiting = [
        f"{order['kind']} at {facts.nodes[order['node']].name}"
        for order in facts.item.standing or []
        if order["kind"] != "source.demote" and (order["attempt"] or facts.nodes[order["node"]].silent)
    ]
    return f"not done yet: {', '.join(waiting)}" if waiting and facts.item.deleted is None else None


def _application(facts: ItemFacts) -> str | None:
    every_h = facts.policy.app_consistent_hours
    if not every_h or not facts.protected:
        return None
    due = timedelta(hours=every_h) + APPLICATION_SLACK
    newest = facts.application_point
    if facts.now - max(newest or facts.item.created, facts.item.created) <= due:
        return None
    shown = "there is none"
    if newest is not None:
        shown = f"the newest is {(facts.now - newest).total_seconds() / 3600:.1f} h old"
    problem = (facts.source.get("app_consistent") or {}).get("problem") or {}
    why = f": {problem['message']}" if problem.get("message") else ""
    return f"the policy wants an application-consistent point every {every_h} h, and {shown}{why}"


def _test_due(facts: ItemFacts) -> str | None:
    if not facts.protected or facts.item.test_state is not TestState.NONE:
        return None
    last = facts.item.last_test_time
    if last is None:
        return "a test failover was never done"
    days = (facts.now - last).days
    return f"the last test failover was {days} days ago" if facts.now - last > TEST_DUE else None


def _test_failed(facts: ItemFacts) -> str | None:
    failed = facts.item.test_state is TestState.FAILED
    return "a test failover failed, and something of it may be left" if failed else None


OPERATION_RULES: Final[tuple[Rule[ItemFacts], ...]] = (
    Rule(
        code="operator-needed",
        category=Category.FAILOVER,
        level=Level.CRITICAL,
        summary="an operation waits for an operator",
        causes=("what a node did is unknown, and going on without knowing could run the machine twice",),
        action="read what the job waits for, look there, and confirm: secondsite job resume",
        holds=_operator_needed,
        told=False,
    ),
    Rule(
        code="enable-failed",
        category=Category.CONFIGURATION,
        level=Level.CRITICAL,
        summary="enabling protection failed",
        causes=("a node did not answer", "the machine or the target does not fulfil what replication needs"),
        action="read the job's error, disable the item, mend the cause and protect the machine again",
        holds=_enable_failed,
        told=False,
    ),
    Rule(
        code="disable-failed",
        category=Category.CONFIGURATION,
        level=Level.CRITICAL,
        summary="disabling protection failed",
        causes=("a node did not answer, so something of ours is left there",),
        action="run disable again when the node is back; with --force what it holds is left there",
        holds=_disable_failed,
        told=False,
    ),
    Rule(
        code="point-change-failed",
        category=Category.FAILOVER,
        level=Level.CRITICAL,
        summary="no recovery point could be started",
        causes=(
            "the target's hypervisor refuses the machine",
            "the journal's disk has no space for an overlay",
        ),
        action="read the job's error, then change to another point or cancel the failover",
        holds=_point_change_failed,
        told=False,
    ),
    Rule(
        code="unprotected",
        category=Category.FAILOVER,
        level=Level.WARNING,
        summary="failed over and not reversed",
        causes=("the failover is not committed, or not reversed",),
        action="commit, then reverse the replication: until then nothing replicates",
        holds=_unprotected,
        told=False,
    ),
    Rule(
        code="commit-pending",
        category=Category.FAILOVER,
        level=Level.WARNING,
        summary="a failover has waited for its commit for more than a day",
        causes=("nobody has decided whether the machine stays there",),
        action="commit, cancel, or change the point; until then the journal keeps every point and grows",
        holds=_commit_pending,
    ),
    Rule(
        code="demotion-pending",
        category=Category.FAILOVER,
        level=Level.WARNING,
        summary="the old side has not stepped down",
        causes=("its node is down or cut off",),
        action="nothing, if it is down: it is told as soon as it is back. If it is cut off, make sure that the machine does not run there",
        holds=_demotion,
        told=False,
    ),
    Rule(
        code="order-pending",
        category=Category.FAILOVER,
        level=Level.WARNING,
        summary="a node has not done what it was told",
        causes=("it is down or cut off", "it was told, and refuses: the command's error says why"),
        action="nothing, if it is down: it is told as soon as it is back; else look at its log",
        holds=_order,
        after_s=60,
    ),
    Rule(
        code="diverged-kept",
        category=Category.FAILOVER,
        level=Level.WARNING,
        summary="a point with the old side's own writes is kept",
        causes=("after an unplanned failover the old side's disks held writes that were never shipped",),
        action="look at it (test-failover or journal extract) and save what is needed, then drop it: it holds space and every later point",
        holds=_diverged,
    ),
    Rule(
        code="application-point-missing",
        category=Category.REPLICATION,
        level=Level.WARNING,
        summary="no application-consistent point although the policy wants one",
        causes=(
            "there is no guest agent, or it does not answer",
            "a hook in the guest failed, or the freeze took too long and was given up",
        ),
        action="look at the item's events for the reason; crash-consistent points go on",
        holds=_application,
    ),
    Rule(
        code="test-failed",
        category=Category.TEST_FAILOVER,
        level=Level.WARNING,
        summary="a test failover failed",
        causes=("the target's hypervisor refuses the machine", "a node did not answer"),
        action="read the job's error, and clean up: secondsite item cleanup-test",
        holds=_test_failed,
        told=False,
    ),
    Rule(
        code="test-due",
        category=Category.TEST_FAILOVER,
        level=Level.INFORMATION,
        summary="a test failover is due",
        causes=(
            "none was ever done, or the last one is more than six months ago. A test counts once it was cleaned up",
        ),
        action="test it: secondsite item test-failover disturbs neither the machine nor its replication",
        holds=_test_due,
        told=False,
    ),
)
