"""A job whose workflow nobody runs is run again; one that runs, has just begun or has ended is left alone."""

from __future__ import annotations

from secondsite.model.ids import JobId
from secondsite.service.workflows.orphans import Orphans

ONE, TWO = JobId("one"), JobId("two")


class Runner:
    """An engine whose workflows a test moves about."""

    def __init__(self) -> None:
        self.open: set[JobId] = set()
        self.mine: set[JobId] = set()
        self.adopted: list[JobId] = []

    def unfinished(self) -> set[JobId]:
        return set(self.open)

    def here(self) -> set[JobId]:
        return set(self.mine)

    def adopt(self, job_id: JobId) -> None:
        self.adopted.append(job_id)


def test_a_job_that_two_looks_did_not_find_running_is_adopted() -> None:
    runner = Runner()
    orphans = Orphans(runner)
    runner.open = {ONE, TWO}
    runner.mine = {TWO}
    orphans.look()
    assert runner.adopted == [], "it may be about to begin"
    orphans.look()
    assert runner.adopted == [ONE]
    runner.mine = {ONE, TWO}
    orphans.look()
    orphans.look()
    assert runner.adopted == [ONE]


def test_an_adopted_job_has_time_to_begin_before_it_is_adopted_again() -> None:
    runner = Runner()
    orphans = Orphans(runner)
    runner.open = {ONE}
    for _ in range(4):
        orphans.look()
    assert runner.adopted == [ONE, ONE]


def test_a_job_that_ended_between_two_looks_is_no_orphan() -> None:
    runner = Runner()
    orphans = Orphans(runner)
    runner.open = {ONE}
    orphans.look()
    runner.open = set()
    orphans.look()
    assert runner.adopted == []


def test_a_service_that_stops_adopts_nothing() -> None:
    runner = Runner()
    orphans = Orphans(runner)
    runner.open = {ONE}
    orphans.look()
    orphans.stop()
    orphans.look()
    assert runner.adopted == []
