"""The outbox: nothing lost, nothing doubled, nobody flooded, bounded tries; and settings that show no secret."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from secondsite.errors import InvalidInputError
from secondsite.service.api.app import PREFIX, create_app
from secondsite.service.notices.composing import Message, Names, compose
from secondsite.service.notices.dispatch import Dispatch
from secondsite.service.store import events, notices
from secondsite.service.store.records import Event
from secondsite.service.store.tables import events as table
from secondsite.service.usecases import alerts, tokens
from secondsite.service.usecases.alerts import WantedReceiver
from secondsite.service.usecases.health import health_errors
from secondsite.service.vocabulary import Role, Severity
from support.service_world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

HOOK = "json://10.0.0.1/very-secret"


@dataclass
class Inbox:
    """What was sent; `error` is what every sending answers."""

    error: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __call__(self, url: str, message: Message) -> str | None:
        if self.error is None:
            self.messages.append(message)
        return self.error

    @property
    def told(self) -> list[int]:
        """Ids of the events, in the order in which they were told."""
        return [event_id for message in self.messages for event_id in message.event_ids]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def dispatch(empty_world: World, inbox: Inbox) -> Iterator[Dispatch]:
    found = Dispatch(empty_world.ctx, send=inbox, monotonic=lambda: empty_world.clock().timestamp())
    yield found
    found.close()


def configure(world: World, per_minute: int = 5, *names: str, enabled: bool = True) -> None:
    wanted = [WantedReceiver(name, f"{HOOK}-{name}") for name in names or ("hook",)]
    alerts.put_alert_settings(
        world.ctx,
        enabled=enabled,
        severities=[Severity.CRITICAL, Severity.WARNING],
        per_minute=per_minute,
        receivers=wanted,
    )


def happen(world: World, count: int = 1, severity: Severity = Severity.CRITICAL) -> list[int]:
    with world.store.transaction() as tx:
        for number in range(count):
            events.add(tx, events.NewEvent(world.clock(), "node-silent", f"thing {number}", severity))
        return sorted(event.id for event in events.listed(tx, limit=count))


def look(dispatch: Dispatch) -> None:
    dispatch.look()
    assert dispatch.wait(60)


def receiver(world: World, name: str = "hook") -> dict[str, Any]:
    found = alerts.alert_settings(world.ctx)["receivers"]
    return next(each for each in found if each["name"] == name)


def test_each_event_of_a_chosen_severity_is_told_once(
    empty_world: World, dispatch: Dispatch, inbox: Inbox
) -> None:
    happen(empty_world)  # before anybody wanted to know
    configure(empty_world)
    wanted = happen(empty_world, 2) + happen(empty_world, 1, Severity.WARNING)
    happen(empty_world, 1, Severity.INFO)
    for _ in range(3):
        look(dispatch)
    assert inbox.told == wanted
    assert (receiver(empty_world)["sent"], receiver(empty_world)["pending"]) == (3, 0)


def test_an_event_that_becomes_visible_late_is_told_too(
    empty_world: World, dispatch: Dispatch, inbox: Inbox
) -> None:
    configure(empty_world)
    first, late, third = happen(empty_world, 3)
    with empty_world.store.transaction() as tx:
        row = dict(tx.execute(sa.select(table).where(table.c.id == late)).one()._mapping)
        tx.execute(sa.delete(table).where(table.c.id == late))
    look(dispatch)
    with empty_world.store.transaction() as tx:
        tx.execute(sa.insert(table).values(row))
    fourth = happen(empty_world)[0]
    look(dispatch)
    assert inbox.told == [first, third, late, fourth]


def test_a_restart_loses_and_doubles_nothing(empty_world: World, inbox: Inbox) -> None:
    configure(empty_world)
    ids = happen(empty_world, 3)

    class Died(BaseException):
        pass

    def dies(url: str, message: Message) -> str | None:
        inbox(url, message)
        if len(inbox.messages) == 2:
            raise Died
        return None

    first = Dispatch(empty_world.ctx, send=dies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threading.excepthook", lambda _args: None)
        look(first)
    assert inbox.told == ids[:2]
    second = Dispatch(empty_world.ctx, send=inbox)
    look(second)
    look(second)
    # The one that was sent and not noted comes again: at least once, with its id in the text.
    assert inbox.told == [ids[0], ids[1], ids[1], ids[2]]
    assert f"Event {ids[1]} of" in inbox.messages[2].body
    assert receiver(empty_world)["sent"] == 3


def test_tries_are_bounded_and_paused_between(empty_world: World, dispatch: Dispatch, inbox: Inbox) -> None:
    configure(empty_world)
    happen(empty_world)
    inbox.error = "refused"
    tries = 0
    real = dispatch.send

    def counted(url: str, message: Message) -> str | None:
        nonlocal tries
        tries += 1
        return real(url, message)

    dispatch.send = counted
    look(dispatch)
    empty_world.clock.turn(seconds=9)
    look(dispatch)
    assert tries == 1
    for pause in notices.RETRY_S:
        empty_world.clock.turn(seconds=pause + 1)
        look(dispatch)
    empty_world.clock.turn(days=1)
    look(dispatch)
    assert tries == 1 + len(notices.RETRY_S)
    found = receiver(empty_world)
    assert (found["sent"], found["failed"], found["pending"], found["last_error"]) == (0, 1, 0, "refused")
    codes = [entry["code"] for entry in health_errors(empty_world.ctx)]
    assert "notices-failing" in codes


def test_a_flood_is_a_few_messages_and_a_digest_of_the_rest(
    empty_world: World, dispatch: Dispatch, inbox: Inbox
) -> None:
    configure(empty_world, 3)
    ids = happen(empty_world, 250)
    look(dispatch)
    assert [len(message.event_ids) for message in inbox.messages] == [1, 1, 248]
    assert inbox.told == ids
    assert inbox.messages[2].title == "[critical] test: 248 events (248 critical)"
    assert "thing 100" in inbox.messages[2].body
    assert "and 148 more" in inbox.messages[2].body
    more = happen(empty_world, 2)
    look(dispatch)
    assert len(inbox.messages) == 3
    empty_world.clock.turn(seconds=61)
    look(dispatch)
    assert inbox.told == ids + more


def test_what_waits_for_a_dead_receiver_is_bounded(
    empty_world: World, dispatch: Dispatch, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "PENDING_MAX", 10)
    configure(empty_world)
    inbox.error = "no"
    ids = happen(empty_world, 15)
    look(dispatch)
    found = receiver(empty_world)
    assert (found["pending"], found["failed"]) == (10, 5)
    inbox.error = None
    empty_world.clock.turn(minutes=2)
    look(dispatch)
    assert inbox.told == ids[5:]


def test_nothing_is_sent_while_it_is_off_and_no_old_news_when_it_comes_back(
    empty_world: World, dispatch: Dispatch, inbox: Inbox
) -> None:
    configure(empty_world, enabled=False)
    happen(empty_world, 2)
    look(dispatch)
    configure(empty_world)
    new = happen(empty_world)
    look(dispatch)
    assert inbox.told == new


def test_a_change_of_the_severities_digs_out_no_old_news_and_loses_no_new(
    empty_world: World, dispatch: Dispatch, inbox: Inbox
) -> None:
    configure(empty_world)
    happen(empty_world, 2, Severity.INFO)
    waiting = happen(empty_world)
    alerts.put_alert_settings(
        empty_world.ctx,
        enabled=True,
        severities=list(Severity),
        per_minute=5,
        receivers=[WantedReceiver("hook")],
    )
    new = happen(empty_world, 1, Severity.INFO)
    look(dispatch)
    look(dispatch)
    assert inbox.told == waiting + new


def test_a_new_receiver_gets_only_what_happens_from_now_on(
    empty_world: World, dispatch: Dispatch, inbox: Inbox
) -> None:
    configure(empty_world)
    happen(empty_world, 2)
    look(dispatch)
    empty_world.clock.turn(seconds=1)
    configure(empty_world, 5, "hook", "other")
    new = happen(empty_world)
    look(dispatch)
    assert inbox.told[2:] == new * 2
    assert receiver(empty_world, "other")["sent"] == 1


def test_old_notices_are_pruned_and_never_sent_again(
    empty_world: World, dispatch: Dispatch, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(empty_world)
    ids = happen(empty_world, 2)
    look(dispatch)
    empty_world.clock.turn(days=8)
    more = happen(empty_world)
    look(dispatch)
    assert inbox.told == ids + more
    monkeypatch.setattr(notices, "REACH", 0)
    with empty_world.store.transaction() as tx:
        assert notices.prune(tx, empty_world.clock()) == 2


def test_a_digest_is_as_bad_as_the_worst_of_it() -> None:
    def event(number: int, severity: Severity) -> Event:
        return Event(number, datetime(2026, 1, 1, tzinfo=UTC), severity, "c", "m", None, None, None, {})

    names = Names("v", {}, {})
    found = compose([event(1, Severity.INFO), event(2, Severity.CRITICAL)], 1, names)
    assert [(message.severity, message.title) for message in found] == [
        (Severity.CRITICAL, "[critical] v: 2 events (1 critical, 1 info)")
    ]
    assert compose([event(1, Severity.INFO)], 0, names) == []


def test_a_notice_names_the_machine_its_causes_and_what_to_do(world: World, inbox: Inbox) -> None:
    item = world.protected()
    configure(world)
    with world.store.transaction() as tx:
        for code in ("cannot-send", "rpo-exceeded", "failover-done"):
            events.add(tx, events.NewEvent(world.clock(), code, "no", Severity.CRITICAL, item_id=item.id))
    dispatch = Dispatch(world.ctx, send=inbox)
    look(dispatch)
    assert inbox.messages[0].title == "[critical] test: cannot-send (web-1)"
    assert "- the network between the sites is away or too thin" in inbox.messages[0].body
    assert "Do: read the error" in inbox.messages[0].body
    assert "Do: look at the item's statistics" in inbox.messages[1].body
    assert "Do:" not in inbox.messages[2].body


# -- settings ----------------------------------------------------------------------------------------------


@pytest.fixture
def client(empty_world: World) -> Iterator[TestClient]:
    secret = tokens.create_token(empty_world.ctx, "c", Role.CONTRIBUTOR).secret
    headers = {"Authorization": f"Bearer {secret}"}
    with TestClient(create_app(empty_world.ctx), base_url=f"http://x{PREFIX}", headers=headers) as found:
        yield found


def test_an_address_is_taken_kept_and_never_shown(empty_world: World, client: TestClient) -> None:
    body = {"severities": ["critical"], "receivers": [{"name": "hook", "url": HOOK}]}
    answer = client.put("/alert-settings", json=body)
    assert answer.status_code == 200
    assert answer.json()["receivers"][0]["kind"] == "json"
    kept = client.put("/alert-settings", json={"receivers": [{"name": "hook"}], "per_minute": 3})
    assert kept.json()["per_minute"] == 3
    shown = client.get("/alert-settings")
    for text in (answer.text, kept.text, shown.text):
        assert "secret" not in text
        assert "10.0.0.1" not in text
    with empty_world.store.reading() as tx:
        assert [each.url for each in notices.receivers(tx)] == [HOOK]
    assert client.put("/alert-settings", json={"receivers": []}).json()["receivers"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"receivers": [{"name": "hook", "url": "nonsense://very-secret"}]},
        {"receivers": [{"name": "hook"}]},
        {"receivers": [{"name": "hook", "url": HOOK}, {"name": "hook", "url": HOOK}]},
        {"receivers": [{"name": "", "url": HOOK}]},
        {"severities": []},
        {"severities": ["loud"]},
        {"per_minute": 0},
        {"url": HOOK},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_without_telling_the_address(
    client: TestClient, body: dict[str, Any]
) -> None:
    answer = client.put("/alert-settings", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_input"
    assert "very-secret" not in answer.text
    assert client.get("/alert-settings").json()["updated"] is None


def test_more_receivers_than_anybody_needs_are_refused(empty_world: World) -> None:
    with pytest.raises(InvalidInputError, match="at most 16"):
        configure(empty_world, 5, *(f"r{number}" for number in range(17)))
