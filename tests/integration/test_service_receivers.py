"""Notices over real sockets: a webhook and a mail server get each event once, a dead one holds up nobody, and no secret is shown."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.service.notices.dispatch import Dispatch
from secondsite.service.notices.sending import scrubbed
from secondsite.service.store import events
from secondsite.service.usecases import alerts
from secondsite.service.usecases.alerts import WantedReceiver
from secondsite.service.vocabulary import Severity
from support.receivers import MailServer, Webhook
from support.service_node import until
from support.service_world import World

pytestmark = pytest.mark.integration
PATIENCE_S = 60.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    found = Webhook()
    yield found
    found.close()


@pytest.fixture
def mail() -> Iterator[MailServer]:
    found = MailServer()
    yield found
    found.close()


def configure(world: World, **urls: str) -> None:
    alerts.put_alert_settings(
        world.ctx,
        enabled=True,
        severities=[Severity.CRITICAL],
        per_minute=10,
        receivers=[WantedReceiver(name, url) for name, url in urls.items()],
    )


def happen(world: World, message: str) -> int:
    with world.store.transaction() as tx:
        events.add(tx, events.NewEvent(world.clock(), "node-silent", message, Severity.CRITICAL))
        return events.listed(tx, limit=1)[0].id


def test_a_webhook_and_a_mail_server_get_each_event_once(
    world: World, webhook: Webhook, mail: MailServer
) -> None:
    configure(world, hook=webhook.url, mail=mail.url)
    event = happen(world, "node host-1 does not answer")
    dispatch = Dispatch(world.ctx)
    for _ in range(3):
        dispatch.look()
        assert dispatch.wait(PATIENCE_S)
    assert len(webhook.bodies) == len(mail.mails) == 1
    told = webhook.bodies[0]
    assert told["title"] == "[critical] test: node-silent"
    assert "node host-1 does not answer" in told["message"]
    assert f"Event {event} of" in told["message"]
    assert told["type"] == "failure"
    letter = mail.mails[0]
    assert letter["Subject"] == "[critical] test: node-silent"
    assert "team@example.com" in str(letter["To"])
    assert f"Event {event} of" in str(letter)
    shown = {each["name"]: each for each in alerts.alert_settings(world.ctx)["receivers"]}
    assert [(each["sent"], each["failed"], each["pending"]) for each in shown.values()] == [(1, 0, 0)] * 2


def test_a_dead_receiver_holds_up_nobody_and_is_tried_again(
    world: World, webhook: Webhook, mail: MailServer
) -> None:
    dead = Webhook()
    address = dead.url
    dead.close()
    webhook.status = 500
    configure(world, dead=address, hook=webhook.url, mail=mail.url)
    happen(world, "first")
    dispatch = Dispatch(world.ctx)
    dispatch.look()
    assert dispatch.wait(PATIENCE_S)
    shown = {each["name"]: each for each in alerts.alert_settings(world.ctx)["receivers"]}
    assert (shown["mail"]["sent"], shown["hook"]["sent"], shown["dead"]["sent"]) == (1, 0, 0)
    assert shown["hook"]["last_error"]
    assert shown["dead"]["last_error"]
    assert "s3cr3t" not in str(shown)
    webhook.status = 200
    world.clock.turn(seconds=11)
    dispatch.look()
    assert dispatch.wait(PATIENCE_S)
    assert len(webhook.bodies) == 1
    assert len(mail.mails) == 1
    shown = {each["name"]: each for each in alerts.alert_settings(world.ctx)["receivers"]}
    assert (shown["hook"]["sent"], shown["hook"]["last_error"], shown["dead"]["pending"]) == (1, None, 1)


def test_one_that_hangs_delays_only_itself(world: World, webhook: Webhook, mail: MailServer) -> None:
    webhook.hold = threading.Event()
    configure(world, hook=webhook.url + "?rto=60", mail=mail.url)
    happen(world, "first")
    dispatch = Dispatch(world.ctx, 0.05)
    dispatch.start()
    until(lambda: mail.mails, "the first mail", PATIENCE_S)
    happen(world, "second")
    until(lambda: len(mail.mails) == 2, "the second mail", PATIENCE_S)
    assert webhook.bodies == []
    webhook.hold.set()
    until(lambda: len(webhook.bodies) == 2, "the webhook to be told both", PATIENCE_S)
    dispatch.close()


def test_a_test_says_who_took_it(world: World, webhook: Webhook, mail: MailServer) -> None:
    configure(world, hook=webhook.url, mail=mail.url)
    mail.close()
    found = {each["name"]: each for each in alerts.test_receivers(world.ctx)}
    assert found["hook"]["delivered"]
    assert not found["mail"]["delivered"]
    assert found["mail"]["error"]
    assert webhook.bodies[0]["title"] == "[test] test"


def test_no_part_of_an_address_is_left_in_a_reason() -> None:
    url = "mailtos://user%40x:pass%2Fword@mail.example.com?to=team@example.com"
    reason = "user@x could not log in to mail.example.com with pass/word for team@example.com"
    kept = scrubbed(reason, url)
    for secret in ("user@x", "pass/word", "mail.example.com", "team"):
        assert secret not in kept
