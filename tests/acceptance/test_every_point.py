"""For every state of a failed-over item beside a test, and of one whose points do not start: what is allowed works on a real
guest, what is refused says why. The rest of the table is in test_every_operation.py.

Without asking the source for its last changes, which would take the time of a shutdown each time.
"""

from __future__ import annotations

import pytest

from secondsite.model.item import Operation
from support.lab_story import LabStory
from support.operation_shares import Share
from support.operation_walk import walking

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

O = Operation  # noqa: E741


def test_points_that_do_not_start_and_a_test_beside_an_unplanned_failover(lab: LabStory) -> None:
    with walking(lab, Share.POINTS) as walk:
        older = walk.protected()
        walk.do(O.RESYNC)
        newer = walk.replicates()
        fail_over = {"shutdown_source": "no", "sequence": newer}

        # A test that runs, through all that may follow; the guest's records tell which point it went on from.
        _, job = walk.do_both(O.TEST_FAILOVER, O.UNPLANNED_FAILOVER, **fail_over)
        assert walk.goes_on_from(job) == newer
        walk.test_runs()
        assert walk.goes_on_from(walk.do(O.CHANGE_POINT, sequence=older)) == older
        walk.change_point_in_vain(newer)
        job, _ = walk.do_both(O.CHANGE_POINT, O.CLEANUP_TEST, sequence=newer)
        assert walk.goes_on_from(job) == newer
        walk.change_point_in_vain(older)
        walk.do(O.CANCEL)
        walk.runs_at("primary")
        walk.replicates()

        # One that failed.
        walk.test_in_vain()
        walk.do(O.UNPLANNED_FAILOVER, **fail_over)
        walk.do(O.CHANGE_POINT, sequence=older)
        walk.change_point_in_vain(newer)
        walk.do(O.CHANGE_POINT, sequence=newer)
        walk.do(O.CANCEL)
        walk.do(O.PAUSE)
        walk.do(O.UNPLANNED_FAILOVER, **fail_over)
        walk.change_point_in_vain(older)
        walk.do(O.CANCEL)
        walk.do(O.PAUSE)
        walk.do_both(O.CLEANUP_TEST, O.UNPLANNED_FAILOVER, **fail_over)
        walk.change_point_in_vain(older)
        walk.do(O.CHANGE_POINT, sequence=newer)
        walk.do(O.CANCEL)

        # And each of the rest with a test of its own: cleaned up before, amid and after the role changes.
        walk.do(O.TEST_FAILOVER)
        walk.do(O.UNPLANNED_FAILOVER, **fail_over)
        walk.change_point_in_vain(older)
        walk.do(O.CANCEL)
        walk.do_both(O.CLEANUP_TEST, O.UNPLANNED_FAILOVER, **fail_over)
        walk.do(O.CANCEL)
        walk.do(O.TEST_FAILOVER)
        walk.do(O.PAUSE)
        walk.do_both(O.UNPLANNED_FAILOVER, O.CLEANUP_TEST, **fail_over)
        walk.do(O.CANCEL)
        walk.do(O.PAUSE)
        walk.do_both(O.TEST_FAILOVER, O.UNPLANNED_FAILOVER, **fail_over)
        walk.do_both(O.CANCEL, O.CLEANUP_TEST)
        walk.do(O.TEST_FAILOVER)
        walk.do(O.UNPLANNED_FAILOVER, **fail_over)
        walk.change_point_in_vain(older)
        walk.do_both(O.CLEANUP_TEST, O.CANCEL)
        walk.test_in_vain()
        walk.do(O.UNPLANNED_FAILOVER, **fail_over)
        walk.do_both(O.CLEANUP_TEST, O.CANCEL)
        walk.test_in_vain()
        walk.do(O.UNPLANNED_FAILOVER, **fail_over)
        walk.change_point_in_vain(older)
        walk.do_both(O.CLEANUP_TEST, O.CHANGE_POINT, sequence=newer)
        walk.do(O.CANCEL)
        walk.runs_at("primary")
        walk.replicates()
        walk.do(O.TEST_FAILOVER)
        walk.do(O.UNPLANNED_FAILOVER, **fail_over)
        walk.do_both(O.CLEANUP_TEST, O.CHANGE_POINT, sequence=older)
        walk.change_point_in_vain(newer)
        walk.disabled(None)
