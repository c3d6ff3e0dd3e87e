"""Progress: rate and time left over a sliding window."""

from __future__ import annotations

import pytest

from secondsite.ship.progress import Progress
from support.ship_site import FakeClock


def test_rate_and_eta_of_a_steady_transfer() -> None:
    clock = FakeClock()
    progress = Progress(100_000, monotonic=clock)
    for _ in range(40):
        clock.sleep(1)
        progress.add(raw=1000, wire=250)
    view = progress.view()
    assert (view.raw, view.wire, view.total) == (40_000, 10_000, 100_000)
    assert view.rate == pytest.approx(1000, rel=0.1)
    assert view.wire_rate == pytest.approx(250, rel=0.1)
    assert view.eta_s == pytest.approx(60, rel=0.1)
    assert view.to_dict() == {
        "bytes": 40_000,
        "total_bytes": 100_000,
        "rate": view.rate,
        "eta_s": view.eta_s,
    }


def test_stall_shows_and_the_burst_before_is_forgotten() -> None:
    clock = FakeClock()
    progress = Progress(2_000_000, monotonic=clock)
    clock.sleep(1)
    progress.add(raw=1_000_000)
    clock.sleep(7)
    assert 0 < progress.view().rate < 200_000
    clock.sleep(60)
    view = progress.view()
    assert view.rate == 0
    assert view.eta_s is None


def test_nothing_known_gives_no_eta_and_the_end_gives_zero() -> None:
    clock = FakeClock()
    progress = Progress(monotonic=clock)
    assert progress.view().eta_s is None
    progress.add(raw=10)
    assert progress.view().eta_s is None
    progress.expect(10)
    assert progress.view().eta_s == 0


def test_part_that_is_sent_again_never_makes_the_rate_negative() -> None:
    clock = FakeClock()
    progress = Progress(monotonic=clock)
    progress.add(raw=1000)
    clock.sleep(20)
    progress.add(raw=-1000)
    assert progress.view().raw == 0
    assert progress.view().rate == 0


def test_samples_stay_few() -> None:
    clock = FakeClock()
    progress = Progress(monotonic=clock)
    for _ in range(100_000):
        clock.sleep(0.001)
        progress.add(raw=1)
    assert len(progress._samples) < 100
    assert progress.view().rate == pytest.approx(1000, rel=0.05)
