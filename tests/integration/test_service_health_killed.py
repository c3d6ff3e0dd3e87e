"""Health, figures and notices over kill -9 of the service: nothing is forgotten, no notice is lost."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.receivers import Webhook
from support.service_node import TwoSites, two_sites, until

pytestmark = [pytest.mark.integration, pytest.mark.fault]
PATIENCE_S = 60.0
BROKEN = {"code": "corrupt", "message": "point 7 is damaged", "retry": "never"}


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(tmp_path) as found:
        yield found


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.close()


def happen(sites: TwoSites, number: int) -> None:
    event = {"code": "trouble", "message": f"trouble {number}", "severity": "critical", "id": str(number)}
    sites.a.report(events=[event])


def told(webhook: Webhook) -> list[str]:
    found = [re.search(r"trouble \d+", body["message"]) for body in webhook.bodies]
    return [match.group() for match in found if match is not None]


def error(sites: TwoSites, code: str) -> dict[str, Any] | None:
    errors = sites.item()["health_errors"]
    return next((each for each in errors if each["code"] == code), None)


@pytest.mark.timeout(300)
def test_notices_and_health_survive_a_killed_service(sites: TwoSites, webhook: Webhook) -> None:
    sites.protect()
    receiver = {"name": "hook", "url": webhook.url + "?rto=60"}
    answer = sites.api.put("/alert-settings", json={"severities": ["critical"], "receivers": [receiver]})
    assert answer.status_code == 200, answer.text

    happen(sites, 1)
    until(lambda: told(webhook) == ["trouble 1"], "the first notice", PATIENCE_S)
    # A service that is killed before it has noted that a notice was taken sends it again, and may.
    until(lambda: _settled(sites, 1), "the note that it was sent", PATIENCE_S)
    webhook.hold = threading.Event()
    happen(sites, 2)
    happen(sites, 3)
    item = sites.item()
    target = {"item": item["id"], "role": "target", "epoch": 1, "phase": "idle", "error": BROKEN}
    sites.b.report(items=[target])
    until(lambda: _kept(sites), "the error to be kept", PATIENCE_S)
    before = error(sites, "target-broken")
    assert before is not None

    sites.service.kill()
    webhook.hold.set()
    webhook.hold = None
    sites.service.start()

    after = error(sites, "target-broken")
    assert after is not None
    assert after["since"] == before["since"]
    until(lambda: {"trouble 2", "trouble 3"} <= set(told(webhook)), "the rest of the notices", PATIENCE_S)
    assert told(webhook).count("trouble 1") == 1
    shown = until(lambda: _settled(sites, 3), "the outbox to be empty", PATIENCE_S)
    assert shown["failed"] == 0
    sites.b.report(items=[{**target, "error": None}])
    until(lambda: error(sites, "target-broken") is None, "the error to end", PATIENCE_S)
    until(lambda: _over(sites), "the event that says so", PATIENCE_S)


def _kept(sites: TwoSites) -> bool:
    """Whether the watch has written the error: before that, its `since` is the time of whoever asks."""
    found, again = error(sites, "target-broken"), error(sites, "target-broken")
    return found is not None and again is not None and found["since"] == again["since"]


def _settled(sites: TwoSites, sent: int) -> dict[str, Any] | None:
    (receiver,) = sites.get("/alert-settings")["receivers"]
    return receiver if receiver["pending"] == 0 and receiver["sent"] >= sent else None


def _over(sites: TwoSites) -> bool:
    codes = [event["code"] for event in sites.get("/events?limit=50")]
    return codes.count("target-broken") == 1 and codes.count("target-broken-over") == 1
