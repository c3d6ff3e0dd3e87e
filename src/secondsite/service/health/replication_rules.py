"""Rules of what keeps an item's points from arriving. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from secondsite.model.item import ItemState
from secondsite.service.health.facts import ItemFacts
from secondsite.service.health.rule import Rule
from secondsite.service.health.vocabulary import Category, Level
from secondsite.service.usecases import consistency

MISSED_MAX: Final = 0.2
"""The field's figure: more than a fifth of the cycles missed in the monitoring interval is a warning."""
MONITORED: Final = timedelta(hours=12)
"""The field's monitoring interval. Ours slides, so that no reset hides what happened a minute before it."""
EXPECTED_MIN: Final = 5.0
"""With fewer cycles than this, one that is late is no trend."""
POINT_OLD: Final = timedelta(hours=1)
CLOCK_AHEAD: Final = timedelta(seconds=5)
FREE_MIN: Final = 0.05
RUNWAY_CRITICAL_S: Final = 4 * 3600.0
RUNWAY_WARNING_S: Final = 24 * 3600.0
OWN_PHASES: Final = frozenset({"stopped", "held", "resync-required"})
"""Phases of a source that a rule of their own tells, with the error that led there."""


def _of_source(code: str) -> Callable[[ItemFacts], str | None]:
    def holds(facts: ItemFacts) -> str | None:
        found = consistency.source_reasons(facts.item, facts.nodes, facts.now)
        return next((reason.message for reason in found if reason.code == code), None)

    return holds


def _inconsistent(facts: ItemFacts) -> str | None:
    found = consistency.role_reasons(facts.item, facts.nodes, facts.settled)
    return next((reason.message for reason in found if reason.code == "inconsistent"), None)


def _said(error: Mapping[str, Any]) -> str:
    hint = f" ({error['hint']})" if error.get("hint") else ""
    return f"{error.get('message', 'the node gave no message')}{hint} [{error.get('code', 'error')}]"


def _error(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    error = report.get("error")
    return error if isinstance(error, dict) else None


def _cannot_send(facts: ItemFacts) -> str | None:
    error = _error(facts.source)
    if error is None or facts.phase in OWN_PHASES:
        return None
    return f"the last cycle failed: {_said(error)}"


def _stopped(facts: ItemFacts) -> str | None:
    found = _of_source("replication-stopped")(facts)
    error = _error(facts.source)
    return found if found is None or error is None else f"{found}: {_said(error)}"


def _unprotected(facts: ItemFacts) -> str | None:
    warnings = facts.source.get("warnings")
    if not isinstance(warnings, list) or facts.item.deleted is not None:
        return None
    new = [str(one.get("disk")) for one in warnings if isinstance(one, dict) and one.get("disk")]
    return f"not protected: {', '.join(sorted(new))}" if new else None


def _phase(phase: str, otherwise: str) -> Callable[[ItemFacts], str | None]:
    def holds(facts: ItemFacts) -> str | None:
        if facts.phase != phase or facts.item.deleted is not None:
            return None
        error = _error(facts.source)
        reason = facts.source.get("reason") or (None if error is None else _said(error))
        return str(reason) if reason else otherwise

    return holds


def _target_error(*, lasting: bool) -> Callable[[ItemFacts], str | None]:
    def holds(facts: ItemFacts) -> str | None:
        error = _error(facts.target)
        if error is None or facts.item.deleted is not None or (error.get("retry") == "never") is not lasting:
            return None
        return f"the target reports: {_said(error)}"

    return holds


def _rpo(facts: ItemFacts) -> str | None:
    if not facts.protected:
        return None
    age, allowed = facts.point_age, facts.policy.rpo_threshold_s
    if age is None:
        return f"there is no recovery point; the policy allows {allowed} s"
    seconds = age.total_seconds()
    return f"newest point: {seconds:.0f} s old; the policy allows {allowed} s" if seconds > allowed else None


def _point_old(facts: ItemFacts) -> str | None:
    age = facts.point_age
    if not facts.protected or age is None or age <= POINT_OLD or _rpo(facts) is not None:
        return None
    return f"the newest recovery point is {age.total_seconds() / 60:.0f} min old"


def _missed(facts: ItemFacts) -> str | None:
    share = facts.share
    if not facts.protected or share.expected < EXPECTED_MIN or share.missed <= MISSED_MAX:
        return None
    return (
        f"{share.missed:.0%} of the cycles of the last {MONITORED.total_seconds() / 3600:.0f} h were missed: "
        f"{share.done} of {share.expected:.0f}, at a copy frequency of {facts.policy.copy_frequency_s} s"
    )


def _initial(facts: ItemFacts) -> str | None:
    if facts.item.state is not ItemState.INITIAL_REPLICATING:
        return None
    if facts.phase == "scheduled":
        return "the initial replication has not begun: it is scheduled for later"
    progress = facts.source.get("progress")
    done, total = (
        (progress.get("bytes"), progress.get("total_bytes")) if isinstance(progress, dict) else (None, None)
    )
    if isinstance(done, int) and isinstance(total, int) and total > 0:
        return f"the initial replication is not complete: {min(1.0, done / total):.0%} of this pass"
    return "the initial replication is not complete: there is nothing to fail over to yet"


def _paused(facts: ItemFacts) -> str | None:
    if facts.item.state is not ItemState.PAUSED and facts.phase != "paused":
        return None
    age = facts.point_age
    shown = "" if age is None else f"; the newest point is {age.total_seconds():.0f} s old"
    return f"replication is paused{shown}"


def _clock(facts: ItemFacts) -> str | None:
    age = facts.point_age
    if age is None or -age <= CLOCK_AHEAD or facts.item.deleted is not None:
        return None
    return f"the newest point is {-age.total_seconds():.0f} s in the future: a clock is wrong, and so is every RPO"


def _journal(facts: ItemFacts) -> tuple[float | None, float, str] | None:
    """Return runway, the free share, and both as a text."""
    journal = facts.target.get("journal")
    if not isinstance(journal, dict) or facts.item.deleted is not None:
        return None
    free, total, runway = journal.get("free"), journal.get("total"), journal.get("runway_s")
    if not isinstance(free, int) or not isinstance(total, int) or total <= 0:
        return None
    left = f"; at the growth of the last hours it is full in {runway / 3600:.1f} h" if runway else ""
    text = f"{free / total:.0%} of the disk with the journal is free ({free / 2**30:.1f} GiB){left}"
    return (float(runway) if isinstance(runway, int | float) else None), free / total, text


def _journal_full(facts: ItemFacts) -> str | None:
    found = _journal(facts)
    if found is None:
        return None
    runway, free, text = found
    return text if free < FREE_MIN or (runway is not None and runway < RUNWAY_CRITICAL_S) else None


def _journal_filling(facts: ItemFacts) -> str | None:
    found = _journal(facts)
    if found is None or _journal_full(facts) is not None:
        return None
    runway, _, text = found
    return text if runway is not None and runway < RUNWAY_WARNING_S else None


_SPACE: Final = (
    "the machine writes more than retention gives up",
    "retention keeps more than the disk holds",
    "a test failover or a failover that is not committed holds old points",
    "something else fills the disk",
)
REPLICATION_RULES: Final[tuple[Rule[ItemFacts], ...]] = (
    Rule(
        code="cannot-send",
        category=Category.REPLICATION,
        level=Level.CRITICAL,
        summary="the source cannot send",
        causes=(
            "the network between the sites is away or too thin",
            "the target's disk is full, or its node is down",
            "the hypervisor refuses a snapshot, or its scratch space is full",
        ),
        action="read the error: it names the part that failed. It is tried again by itself; what changes meanwhile is tracked",
        holds=_cannot_send,
        after_s=30,
    ),
    Rule(
        code="disk-unprotected",
        category=Category.REPLICATION,
        level=Level.WARNING,
        summary="the machine has a disk that is not replicated",
        causes=("a disk was added to the machine after it was protected",),
        action="to replicate it, disable the item and protect the machine again; else the replica comes up without it",
        holds=_unprotected,
        told=False,
    ),
    Rule(
        code="resync-required",
        category=Category.REPLICATION,
        level=Level.CRITICAL,
        summary="a resynchronization is required",
        causes=(
            "change tracking was lost (the hypervisor was killed, the host lost power, a disk changed while it was off)",
            "the policy allows resynchronizations in a window only, or by hand",
        ),
        action="wait for the window, or resynchronize now; earlier points stay valid, and an unplanned failover to them is possible",
        holds=_phase(
            "resync-required", "change tracking was lost: nothing replicates until the disks were compared"
        ),
    ),
    Rule(
        code="replication-stopped",
        category=Category.REPLICATION,
        level=Level.CRITICAL,
        summary="the source has stopped",
        causes=(
            "another side took over at a higher epoch",
            "the replicator met an error that it cannot pass",
        ),
        action="read its error, mend the cause and restart the node",
        holds=_stopped,
        told=False,
    ),
    Rule(
        code="held",
        category=Category.FAILOVER,
        level=Level.CRITICAL,
        summary="the machine is held by the boot gate",
        causes=(
            "its host has booted, and neither target nor service has confirmed that it may run here",
            "the network to both of them is down",
        ),
        action="restore the network; or make sure that it runs nowhere else and start it: secondsite node start-held",
        holds=_phase("held", "its host has booted and nobody has confirmed that it may run here"),
    ),
    Rule(
        code="report-missing",
        category=Category.REPLICATION,
        level=Level.CRITICAL,
        summary="the source node says nothing of the item",
        causes=("the node lost its record of the item", "the record is damaged"),
        action="look at the node's log",
        holds=_of_source("report-missing"),
        told=False,
    ),
    Rule(
        code="inconsistent",
        category=Category.FAILOVER,
        level=Level.CRITICAL,
        summary="a node has another role or epoch than the service believes",
        causes=("a node was restored from a backup", "the service's database was restored from a backup"),
        action="find out where the machine runs and let no second copy of it run",
        holds=_inconsistent,
        told=False,
    ),
    Rule(
        code="rpo",
        category=Category.REPLICATION,
        level=Level.CRITICAL,
        summary="the newest recovery point is older than the RPO threshold",
        causes=(
            "cycles fail: there is an error of its own then",
            "a cycle takes longer than the threshold: the link is too thin for what the machine writes",
            "the threshold is below the copy frequency plus the time of a cycle",
        ),
        action="look at the item's statistics. The threshold is an alert and changes nothing; how often is copied is the copy frequency",
        holds=_rpo,
        told=False,
    ),
    Rule(
        code="target-broken",
        category=Category.REPLICATION,
        level=Level.CRITICAL,
        summary="the target has an error that does not heal by itself",
        causes=("the journal is damaged", "the journal's disk fails"),
        action="read the error; secondsite journal verify on the target names what is damaged",
        holds=_target_error(lasting=True),
    ),
    Rule(
        code="journal-nearly-full",
        category=Category.INFRASTRUCTURE,
        level=Level.CRITICAL,
        summary="the disk with the journal is nearly full",
        causes=_SPACE,
        action="give the disk more space, shorten retention, or clean up the test; a full disk stops replication and loses no point",
        holds=_journal_full,
    ),
    Rule(
        code="journal-filling",
        category=Category.INFRASTRUCTURE,
        level=Level.WARNING,
        summary="the disk with the journal is full within a day",
        causes=_SPACE,
        action="give the disk more space or shorten retention before it is full",
        holds=_journal_filling,
    ),
    Rule(
        code="target-failing",
        category=Category.REPLICATION,
        level=Level.WARNING,
        summary="the target has an error and tries again",
        causes=(
            "something holds what it needs",
            "its disk is full",
            "a tool or the hypervisor does not answer",
        ),
        action="read the error; if it stays, the target's log tells more",
        holds=_target_error(lasting=False),
        after_s=60,
    ),
    Rule(
        code="cycles-missed",
        category=Category.REPLICATION,
        level=Level.WARNING,
        summary="more than 20 % of the cycles were missed",
        causes=(
            "the link is too thin for what the machine writes",
            "a cycle takes longer than the copy frequency",
            "cycles failed, or the source was down",
        ),
        action="compare average and largest cycle in the item's statistics with the copy frequency; raise the bandwidth limit or choose a lower frequency",
        holds=_missed,
        after_s=60,
    ),
    Rule(
        code="point-old",
        category=Category.REPLICATION,
        level=Level.WARNING,
        summary="no recovery point for more than an hour",
        causes=("cycles fail", "a cycle takes very long: a resynchronization, or a burst of writes"),
        action="look at the phase and its progress: secondsite item show",
        holds=_point_old,
    ),
    Rule(
        code="initial-incomplete",
        category=Category.REPLICATION,
        level=Level.WARNING,
        summary="the initial replication is not complete",
        causes=("it runs: the first copy takes as long as the disks are large", "it is scheduled for later"),
        action="wait for it; the time that is left is in the item's progress",
        holds=_initial,
        told=False,
    ),
    Rule(
        code="paused",
        category=Category.REPLICATION,
        level=Level.WARNING,
        summary="replication is paused",
        causes=("somebody paused it",),
        action="resume it when the reason is over; changes are tracked meanwhile",
        holds=_paused,
        told=False,
    ),
    Rule(
        code="clock-ahead",
        category=Category.INFRASTRUCTURE,
        level=Level.WARNING,
        summary="points come from the future",
        causes=("the clock of the source's host, or of the service, is wrong",),
        action="synchronise the clocks: a wrong clock falsifies RPO and retention",
        holds=_clock,
        after_s=60,
    ),
)
