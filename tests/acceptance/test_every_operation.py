"""For every state of an item: each allowed operation works on a real guest, each refused one says why and what to do instead.

Each walk has its share of the table and fails if it left out any of that; what there is comes from the state machine itself
(support/operation_shares.py). The states that a failed-over machine shares with a test are in test_every_point.py.
"""

from __future__ import annotations

import pytest

from secondsite.journal import Journal
from secondsite.model.ids import Sequence
from secondsite.model.item import Event, ItemState, Operation
from support.lab_story import LabStory, until
from support.operation_shares import Share
from support.operation_walk import SLOW_S, walking

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

S, O = ItemState, Operation  # noqa: E741


def test_protecting_a_machine_and_every_way_to_give_it_up(lab: LabStory) -> None:
    with walking(lab, Share.ENABLE) as walk:
        lab.policy(bandwidth_limit=64 << 10)
        try:
            walk.protect()
            until(lambda: walk.situation()[0] is S.INITIAL_REPLICATING, "the initial replication", SLOW_S)
            walk.disabled()
        finally:
            lab.policy(bandwidth_limit=0)
        walk.protect_in_vain()
        walk.disabled()

        # Somebody reads the journal: it cannot be removed, until that ends.
        walk.protected()
        with (
            Journal.open(lab.journal(walk.name), writable=False) as journal,
            journal.view(Sequence(lab.newest(walk.name)), purpose="test"),
        ):
            walk.do(O.DISABLE, Event.FAILED)
        walk.is_in(S.DISABLE_FAILED)
        walk.disabled()

        walk.protected()
        walk.do(O.PAUSE)
        walk.disabled()
        walk.protected()
        walk.disabled()


def test_replication_with_a_test_beside_it(lab: LabStory) -> None:
    with walking(lab, Share.TESTS) as walk:
        walk.protected()
        walk.do(O.RESYNC)
        walk.replicates()
        walk.reports("compared", lambda source: source["counters"].get("resyncs") == 1)
        walk.do(O.PAUSE)
        walk.reports("paused", lambda source: source["phase"] == "paused")
        walk.do(O.RESUME)
        walk.replicates()

        # A test that does not start.
        walk.test_in_vain()
        walk.do(O.RESYNC)
        walk.do(O.PAUSE)
        walk.do(O.RESUME)
        walk.do(O.CLEANUP_TEST)
        walk.do(O.PAUSE)
        walk.test_in_vain()
        walk.do(O.CLEANUP_TEST)

        # One that runs, and each operation while it starts, while it runs, and while it is cleaned up.
        walk.do_both(O.TEST_FAILOVER, O.RESUME)
        walk.test_runs()
        walk.do(O.RESYNC)
        walk.replicates()
        walk.do(O.PAUSE)
        walk.do(O.RESUME)
        walk.replicates()
        walk.do_both(O.CLEANUP_TEST, O.RESYNC)
        walk.do_both(O.TEST_FAILOVER, O.RESYNC)
        walk.do_both(O.CLEANUP_TEST, O.PAUSE)
        walk.do(O.TEST_FAILOVER)
        walk.do_both(O.CLEANUP_TEST, O.RESUME)
        walk.do_both(O.TEST_FAILOVER, O.PAUSE)
        walk.do(O.CLEANUP_TEST)

        # As it is, without its last changes: it is paused.
        walk.goes_on_from(walk.do(O.UNPLANNED_FAILOVER, shutdown_source="no"))
        walk.disabled("secondary")


def test_planned_there_and_back(lab: LabStory) -> None:
    with walking(lab, Share.PLANNED) as walk:
        walk.protected()
        walk.do(O.PLANNED_FAILOVER)
        walk.lost_nothing("primary", "secondary")
        walk.do(O.CANCEL)
        walk.goes_on("primary")
        walk.replicates()
        walk.do(O.PLANNED_FAILOVER)
        walk.lost_nothing("primary", "secondary")
        walk.do(O.COMMIT)
        walk.runs_at("secondary")
        walk.do(O.REVERSE)
        walk.runs_at("secondary")
        walk.replicates("primary")
        walk.do(O.PLANNED_FAILOVER)
        walk.lost_nothing("secondary", "primary")
        walk.disabled("primary")


def test_unplanned_to_an_older_point_and_to_its_end(lab: LabStory) -> None:
    with walking(lab, Share.UNPLANNED) as walk:
        older = walk.protected()
        walk.do(O.RESYNC)
        latest = walk.replicates()
        assert walk.goes_on_from(walk.do(O.UNPLANNED_FAILOVER, shutdown_source="no")) >= latest
        assert walk.goes_on_from(walk.do(O.CHANGE_POINT, sequence=older)) == older
        assert walk.goes_on_from(walk.do(O.CHANGE_POINT, sequence=latest)) == latest
        walk.do(O.CANCEL)
        walk.goes_on("primary")
        walk.replicates()
        walk.do(O.UNPLANNED_FAILOVER, point="latest")
        walk.do(O.COMMIT)
        walk.goes_on("secondary")
        walk.disabled("secondary")
