"""The demo's story holds: every claim, judged by the guest's own records, and nothing is left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.lab.demo import Demo

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]


def test_every_claim_of_the_demo_holds(short_path: Path) -> None:
    said: list[str] = []
    claims = Demo(short_path / "demo", said.append, watch_s=12, patience=6).run()
    assert not claims.failed, "\n".join([*claims.failed, *said])
    assert len(claims.held) >= 38
    assert claims.figures["planned_failover_records_lost"] == 0
    assert claims.figures["failback_records_lost"] == 0
    assert claims.figures["unplanned_failover_record"] > claims.figures["older_point_record"] > 0
    assert not (short_path / "demo").exists()
