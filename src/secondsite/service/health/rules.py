"""All health rules, and what they find. Pure; the page docs/reference/health.md is made from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from secondsite.service.health.facts import ItemFacts, NodeFacts, VaultFacts
from secondsite.service.health.operation_rules import OPERATION_RULES
from secondsite.service.health.place_rules import NODE_RULES, SILENT_OF_ITEM, VAULT_RULES
from secondsite.service.health.replication_rules import REPLICATION_RULES
from secondsite.service.health.rule import Finding, find
from secondsite.service.health.vocabulary import RANK, Subject

ITEM_RULES: Final = (*REPLICATION_RULES, *OPERATION_RULES, SILENT_OF_ITEM)
ONLY_VAULT: Final = "vault"
"""The id under which the vault's own errors stand."""


def of_item(facts: ItemFacts) -> list[Finding]:
    """Return what is wrong with an item now, worst first."""
    return _ordered(find(rule, facts, Subject.ITEM, facts.item.id) for rule in ITEM_RULES)


def of_node(facts: NodeFacts) -> list[Finding]:
    """Return what is wrong with a node now, worst first."""
    return _ordered(find(rule, facts, Subject.NODE, facts.node.id) for rule in NODE_RULES)


def of_vault(facts: VaultFacts) -> list[Finding]:
    """Return what is wrong with the vault itself now, worst first."""
    return _ordered(find(rule, facts, Subject.VAULT, ONLY_VAULT) for rule in VAULT_RULES)


def _ordered(found: Iterable[Finding | None]) -> list[Finding]:
    holding = [finding for finding in found if finding is not None]
    return sorted(holding, key=lambda finding: (RANK[finding.level], finding.code))
