"""Each health rule: what it holds for, and that a healthy item, node and vault have none."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secondsite.model.ids import ItemId, NodeId, SiteId
from secondsite.model.item import Direction, ItemState, TestState
from secondsite.model.policy import Policy
from secondsite.service.health import page, rules
from secondsite.service.health.facts import ItemFacts, NodeFacts, Share, VaultFacts
from secondsite.service.store.records import Item, Node

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ERROR = {"code": "unavailable", "message": "no answer", "hint": "look at the network", "retry": "later"}


def node(name: str, **values: Any) -> Node:
    seen = {"last_seen": NOW, "silent": False, "revoked": False, "inventory": {}, "inventory_time": NOW}
    return Node(
        NodeId(name), name, SiteId("s"), [], "127.0.0.1:9", None, "1", "k", "0.1", NOW, **{**seen, **values}
    )


def healthy_item() -> Item:
    made = dict.fromkeys(Item.__dataclass_fields__)
    return Item(
        **{
            **made,
            "id": ItemId("i"),
            "name": "web-1",
            "state": ItemState.PROTECTED,
            "test_state": TestState.NONE,
            "direction": Direction.PRIMARY_TO_RECOVERY,
            "epoch": 1,
            "primary_node_id": NodeId("a"),
            "recovery_node_id": NodeId("b"),
            "journal_node_id": NodeId("b"),
            "source_report": {"role": "source", "epoch": 1, "phase": "idle", "error": None},
            "source_report_time": NOW,
            "target_report": {"role": "target", "epoch": 1, "error": None},
            "target_report_time": NOW,
            "last_sequence": 7,
            "last_point_time": NOW - timedelta(seconds=3),
            "last_test_time": NOW - timedelta(days=3),
            "created": NOW - timedelta(days=10),
        }
    )


def facts(**values: Any) -> ItemFacts:
    usual = {"policy": Policy(copy_frequency_s=30, rpo_threshold_s=900), "item": healthy_item()}
    known = {"nodes": {NodeId("a"): node("a"), NodeId("b"): node("b")}}
    return ItemFacts(now=NOW, **{**usual, **known, **values})


def item(**values: Any) -> ItemFacts:
    return facts(item=replace(healthy_item(), **values))


def source(**values: Any) -> ItemFacts:
    return item(source_report={**(healthy_item().source_report or {}), **values})


def target(**values: Any) -> ItemFacts:
    return item(target_report={**(healthy_item().target_report or {}), **values})


def journal(*, free: int, runway_s: float | None = None) -> ItemFacts:
    return target(journal={"free": free, "total": 1000, "runway_s": runway_s})


def ago(**by: float) -> datetime:
    return NOW - timedelta(**by)


def standing(kind: str, attempt: int = 0) -> list[dict[str, Any]]:
    return [{"kind": kind, "node": "a", "attempt": attempt}]


CASES: dict[str, list[tuple[ItemFacts, str]]] = {
    "cannot-send": [(source(phase="waiting", error=ERROR), "look at the network")],
    "resync-required": [
        (source(phase="resync-required"), "compared"),
        (source(phase="resync-required", error=ERROR), "no answer"),
    ],
    "disk-unprotected": [(source(warnings=[{"code": "disk-unprotected", "disk": "vdc"}]), "vdc")],
    "replication-stopped": [(source(phase="stopped", error=ERROR), "no answer")],
    "held": [(source(phase="held", reason="nobody vouches"), "nobody vouches")],
    "report-missing": [(item(source_report_time=ago(seconds=61)), "61 s")],
    "inconsistent": [(target(role="active"), "active")],
    "rpo": [
        (item(last_point_time=ago(seconds=901)), "901 s old"),
        (item(last_point_time=None), "no recovery point"),
    ],
    "target-broken": [(target(error={**ERROR, "retry": "never"}), "no answer")],
    "target-failing": [(target(error=ERROR), "no answer")],
    "journal-nearly-full": [(journal(free=49), "5%"), (journal(free=600, runway_s=3 * 3600), "3.0 h")],
    "journal-filling": [(journal(free=600, runway_s=23 * 3600), "23.0 h")],
    "cycles-missed": [(facts(share=Share(100.0, 79)), "21%")],
    "point-old": [
        (
            facts(
                policy=Policy(rpo_threshold_s=7200),
                item=replace(healthy_item(), last_point_time=ago(minutes=61)),
            ),
            "61 min",
        )
    ],
    "initial-incomplete": [
        (
            item(
                state=ItemState.INITIAL_REPLICATING,
                source_report={"role": "source", "phase": "scheduled"},
            ),
            "scheduled",
        ),
        (item(state=ItemState.INITIAL_REPLICATING), "nothing to fail over to"),
        (
            facts(
                item=replace(
                    healthy_item(),
                    state=ItemState.INITIAL_REPLICATING,
                    source_report={
                        "role": "source",
                        "phase": "initial",
                        "progress": {"bytes": 1, "total_bytes": 4},
                    },
                )
            ),
            "25%",
        ),
    ],
    "paused": [(source(phase="paused"), "paused"), (item(state=ItemState.PAUSED), "3 s old")],
    "clock-ahead": [(item(last_point_time=NOW + timedelta(seconds=6)), "6 s in the future")],
    "operator-needed": [(facts(waits_for="a word"), "a word")],
    "enable-failed": [(item(state=ItemState.ENABLE_FAILED), "failed")],
    "disable-failed": [(item(state=ItemState.DISABLE_FAILED), "failed")],
    "unprotected": [
        (item(state=ItemState.COMMITTED), "reversed"),
        (item(state=ItemState.COMMIT_PENDING, target_report={"role": "active", "epoch": 1}), "reversed"),
        (item(state=ItemState.UNPLANNED_COMMIT_PENDING), "reversed"),
    ],
    "commit-pending": [
        (item(state=ItemState.COMMIT_PENDING, last_failover_time=ago(hours=25)), "25 h"),
    ],
    "demotion-pending": [(item(standing=standing("source.demote")), "stepped back")],
    "order-pending": [(item(standing=standing("source.pause", 1)), "source.pause at a")],
    "point-change-failed": [(item(state=ItemState.POINT_CHANGE_FAILED), "nothing runs")],
    "application-point-missing": [
        (facts(policy=Policy(app_consistent_hours=4)), "there is none"),
        (facts(policy=Policy(app_consistent_hours=4), application_point=ago(hours=6)), "6.0 h old"),
        (
            facts(
                policy=Policy(app_consistent_hours=1),
                item=replace(
                    healthy_item(),
                    source_report={
                        **(healthy_item().source_report or {}),
                        "app_consistent": {"problem": {"message": "no agent"}},
                    },
                ),
            ),
            "no agent",
        ),
    ],
    "diverged-kept": [(facts(diverged=12), "point 12")],
    "test-failed": [(item(test_state=TestState.FAILED), "left")],
    "test-due": [(item(last_test_time=None), "never"), (item(last_test_time=ago(days=183)), "183 days")],
    "node-silent": [
        (facts(nodes={NodeId("a"): node("a"), NodeId("b"): node("b", silent=True)}), "node b"),
    ],
}
NOT_YET: dict[str, ItemFacts] = {
    "report-missing": item(source_report_time=ago(seconds=60)),
    "rpo": item(last_point_time=ago(seconds=900)),
    "journal-nearly-full": journal(free=51),
    "journal-filling": journal(free=600, runway_s=24 * 3600),
    "cycles-missed": facts(share=Share(100.0, 80)),
    "few cycles": facts(share=Share(4.9, 0)),
    "point-old": facts(
        policy=Policy(rpo_threshold_s=7200), item=replace(healthy_item(), last_point_time=ago(minutes=60))
    ),
    "clock-ahead": item(last_point_time=NOW + timedelta(seconds=5)),
    "test-due": item(last_test_time=ago(days=182)),
    "application": facts(policy=Policy(app_consistent_hours=4), application_point=ago(hours=5)),
    "order": item(standing=standing("source.resume")),
    "testing": item(last_test_time=None, test_state=TestState.RUNNING),
}


def codes(found: ItemFacts) -> list[str]:
    return [finding.code for finding in rules.of_item(found)]


def test_a_healthy_item_node_and_vault_have_no_errors() -> None:
    assert codes(facts()) == []
    assert rules.of_node(NodeFacts(now=NOW, node=node("a"), items=1)) == []
    assert rules.of_vault(VaultFacts(now=NOW, items=1, receivers=1)) == []


@pytest.mark.parametrize(
    ("code", "found", "words"), [(code, *case) for code, cases in CASES.items() for case in cases]
)
def test_a_rule_holds_for_its_case_and_says_the_facts(code: str, found: ItemFacts, words: str) -> None:
    findings = {finding.code: finding for finding in rules.of_item(found)}
    assert code in findings
    assert words in findings[code].message
    assert findings[code].causes
    assert findings[code].action


@pytest.mark.parametrize("found", NOT_YET.values(), ids=NOT_YET)
def test_at_its_limit_no_rule_holds_yet(found: ItemFacts) -> None:
    assert codes(found) == []


def test_every_rule_of_items_has_a_case() -> None:
    assert {rule.code for rule in rules.ITEM_RULES} == CASES.keys()


def test_one_fault_is_told_by_one_rule() -> None:
    assert codes(source(phase="resync-required", error=ERROR)) == ["resync-required"]
    assert codes(source(phase="stopped", error=ERROR)) == ["replication-stopped"]
    assert codes(item(last_point_time=ago(hours=2))) == ["rpo"]
    assert codes(journal(free=10, runway_s=600)) == ["journal-nearly-full"]


def test_the_worst_comes_first() -> None:
    found = facts(item=replace(healthy_item(), last_test_time=None, last_point_time=ago(hours=2)), diverged=3)
    assert codes(found) == ["rpo", "diverged-kept", "test-due"]


def test_a_disabled_item_has_none() -> None:
    gone = {"deleted": NOW, "state": ItemState.DISABLED, "last_point_time": ago(days=2)}
    found = facts(
        item=replace(
            healthy_item(),
            **gone,
            source_report={"phase": "stopped", "error": None},
            target_report={"error": ERROR},
        ),
        nodes={NodeId("a"): node("a", silent=True), NodeId("b"): node("b", silent=True)},
        diverged=4,
    )
    assert codes(found) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"silent": True}, ["node-silent"]),
        ({"inventory_time": ago(minutes=6)}, ["hypervisor-silent"]),
        ({"inventory_time": ago(minutes=5)}, []),
        ({"silent": True, "revoked": True}, []),
    ],
)
def test_rules_of_nodes(values: dict[str, Any], expected: list[str]) -> None:
    found = rules.of_node(NodeFacts(now=NOW, node=node("a", **values)))
    assert [finding.code for finding in found] == expected


@pytest.mark.parametrize(
    ("vault", "expected"),
    [
        (VaultFacts(now=NOW, items=1), ["nobody-told"]),
        (VaultFacts(now=NOW), []),
        (VaultFacts(now=NOW, items=1, receivers=2, failing={"mail": "refused"}), ["notices-failing"]),
    ],
)
def test_rules_of_the_vault(vault: VaultFacts, expected: list[str]) -> None:
    assert [finding.code for finding in rules.of_vault(vault)] == expected


def test_codes_are_unique_and_words_are_whole() -> None:
    every = rules.ITEM_RULES
    assert len({rule.code for rule in every}) == len(every)
    for rule in every:
        assert not rule.action.endswith("."), rule.code
        assert rule.summary[0].islower(), rule.code


def test_the_page_is_what_the_rules_say() -> None:
    path = Path(__file__).parents[3] / "docs" / "reference" / "health.md"
    assert path.read_text() == page.page(), (
        "run: python -m secondsite.service.health.page > docs/reference/health.md"
    )
