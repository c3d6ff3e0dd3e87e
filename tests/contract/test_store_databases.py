"""The store's promises, on every database that it supports."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from secondsite.errors import ConflictError, NotFoundError
from secondsite.model.ids import CommandId, GroupId, ItemId, JobId, NodeId, SiteId
from secondsite.model.item import ItemState
from secondsite.service.store import (
    audit,
    commands,
    events,
    groups,
    items,
    jobs,
    nodes,
    points,
    pruning,
    vaults,
)
from secondsite.service.store.database import FencedError, Store, is_transient
from secondsite.service.store.lease import ServiceLock
from secondsite.service.store.records import CloudMapping, Group, Job, Point, Site
from secondsite.service.store.tables import cloud_mappings, clouds, metadata, policies
from secondsite.service.store.tables import items as items_table
from secondsite.service.vocabulary import CommandState, JobState, Side
from support.private_postgres import PrivatePostgres

NOW = datetime(2026, 11, 23, 5, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def other_url(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'other.sqlite'}"
    server: PrivatePostgres = request.getfixturevalue("postgres")
    return server.new_database()


def described(engine: sa.Engine) -> dict[str, Any]:
    """Everything of the schema that the database knows, in a form that compares."""
    inspector = sa.inspect(engine)
    found: dict[str, Any] = {}
    for table in inspector.get_table_names():
        if table == "alembic_version":
            continue
        found[table] = {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"])
                for column in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table),
            "foreign": sorted(map(str, inspector.get_foreign_keys(table))),
            "unique": sorted(map(str, inspector.get_unique_constraints(table))),
            "checks": sorted(map(str, inspector.get_check_constraints(table))),
            "indexes": sorted(
                str(
                    {
                        **index,
                        "dialect_options": {
                            key: str(value) for key, value in index["dialect_options"].items()
                        },
                    }
                )
                for index in inspector.get_indexes(table)
            ),
        }
    return found


def test_migrations_build_the_schema_that_the_code_believes_in(url: str, other_url: str) -> None:
    by_steps, direct = Store.open(url), Store(other_url)
    metadata.create_all(direct._engine)
    try:
        migrated = described(by_steps._engine)
        assert migrated.keys() == metadata.tables.keys()
        assert migrated == described(direct._engine)
    finally:
        by_steps.close()
        direct.close()


def test_opening_again_and_at_the_same_time_changes_nothing(url: str) -> None:
    Store.open(url).close()
    before = Store.open(url)
    schema = described(before._engine)
    threads = [threading.Thread(target=lambda: Store.open(url).close()) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert described(before._engine) == schema
    before.close()


# -- items and jobs ----------------------------------------------------------------------------------------


def given_item(store: Store, name: str = "web", vm: str | None = None) -> ItemId:
    """Add an item with all that it refers to."""
    with store.transaction() as tx:
        if not vaults.list_sites(tx):
            vaults.create_site(tx, Site(SiteId("s"), "site", NOW))
            for node in ("n1", "n2"):
                nodes.add(
                    tx,
                    {
                        "id": node,
                        "name": node,
                        "site_id": "s",
                        "roles": ["source", "target"],
                        "data_address": "h:1",
                        "storage": None,
                        "certificate_serial": "1",
                        "public_key": "k",
                        "version": "",
                        "enrolled": NOW,
                    },
                )
            for cloud in ("c1", "c2"):
                tx.execute(sa.insert(clouds).values(id=cloud, name=cloud, site_id="s", created=NOW))
            tx.execute(sa.insert(policies).values(id="p", name="p", settings={}, revision=1, created=NOW))
            mapping = CloudMapping("m", "c1", "c2", "p", NOW)  # type: ignore[arg-type]
            tx.execute(
                sa.insert(cloud_mappings).values(
                    id=mapping.id, source_cloud_id="c1", target_cloud_id="c2", policy_id="p", created=NOW
                )
            )
        item = ItemId(f"item-{name}-{vm}")
        items.add(
            tx,
            {
                "id": item,
                "name": name,
                "vm_uuid": vm or f"vm-{name}",
                "cloud_mapping_id": "m",
                "state": "protected",
                "test_state": "none",
                "direction": "primary-to-recovery",
                "epoch": 1,
                "primary_node_id": "n1",
                "recovery_node_id": "n2",
                "journal_node_id": "n2",
                "digest_key": bytes(range(32)),
                "disks": {"vda": {"size": 1 << 40}},
                "networks": [],
                "created": NOW,
            },
            events.NewEvent(NOW, "enabling", "x", item_id=item),
        )
    return item


def a_job(job: str, item: ItemId, operation: str, state: JobState = JobState.NOT_STARTED) -> Job:
    return Job(JobId(job), operation, item, "web", state, 0.0, "me", {}, NOW, None, None, None, None)


def test_an_item_comes_back_as_it_was_written(store: Store) -> None:
    item_id = given_item(store)
    with store.reading() as tx:
        item = items.get(tx, "web")
    assert (item.id, item.state, item.epoch) == (item_id, ItemState.PROTECTED, 1)
    assert item.digest_key == bytes(range(32))
    assert item.disks == {"vda": {"size": 1 << 40}}
    assert item.created == NOW
    assert item.created.tzinfo is UTC
    assert item.test is None


def test_two_unfinished_changes_of_an_item_are_refused(store: Store) -> None:
    item = given_item(store)
    with store.transaction() as tx:
        jobs.add(tx, a_job("j1", item, "planned-failover"))
    with pytest.raises(ConflictError), store.transaction() as tx:
        jobs.add(tx, a_job("j2", item, "disable"))
    with store.transaction() as tx:
        jobs.add(tx, a_job("j3", item, "test-failover"))
    with pytest.raises(ConflictError), store.transaction() as tx:
        jobs.add(tx, a_job("j4", item, "cleanup-test", JobState.SUSPENDED))
    with store.transaction() as tx:
        jobs.change(tx, JobId("j1"), state=JobState.FAILED)
        jobs.add(tx, a_job("j5", item, "disable"))
    with store.reading() as tx:
        assert {job.id for job in jobs.listed(tx)} == {"j1", "j3", "j5"}


def test_jobs_of_other_items_do_not_count(store: Store) -> None:
    one, two = given_item(store, "one"), given_item(store, "two")
    with store.transaction() as tx:
        jobs.add(tx, a_job("j1", one, "commit"))
        jobs.add(tx, a_job("j2", two, "commit"))


@pytest.mark.parametrize(
    "values",
    [
        {"state": "lost"},
        {"test_state": "lost"},
        {"direction": "sideways"},
        {"epoch": 0},
        {"state": "disabled"},
        {"deleted": NOW},
        {"recovery_node_id": "n1"},
    ],
    ids=lambda values: "-".join(values),
)
def test_an_item_in_an_impossible_condition_is_refused(store: Store, values: dict[str, Any]) -> None:
    given_item(store)
    with pytest.raises(ConflictError), store.transaction() as tx:
        tx.execute(sa.update(items_table).values(**values))


def test_a_machine_is_protected_once_at_a_time(store: Store) -> None:
    item = given_item(store, "web", "vm-1")
    with pytest.raises(ConflictError):
        given_item(store, "other", "vm-1")
    with pytest.raises(ConflictError):
        given_item(store, "web", "vm-2")
    with store.transaction() as tx:
        event = events.NewEvent(NOW, "disabled", "x", item_id=item)
        items.move(tx, item, event, state=ItemState.DISABLED, deleted=NOW)
    again = given_item(store, "web", "vm-1b")
    with store.reading() as tx:
        assert items.get(tx, "web").id == again
        assert items.get(tx, item).state is ItemState.DISABLED


def test_an_epoch_has_one_writable_side(store: Store) -> None:
    item = given_item(store)
    with store.transaction() as tx:
        items.make_writable(tx, item, 1, Side.PRIMARY, NodeId("n1"), NOW)
    with pytest.raises(ConflictError), store.transaction() as tx:
        items.make_writable(tx, item, 1, Side.RECOVERY, NodeId("n2"), NOW)
    with store.transaction() as tx:
        items.make_writable(tx, item, 2, Side.RECOVERY, NodeId("n2"), NOW)
    with store.reading() as tx:
        assert [(row.epoch, row.side) for row in items.writable(tx, item)] == [
            (1, Side.PRIMARY),
            (2, Side.RECOVERY),
        ]


def test_what_is_referred_to_is_not_deleted(store: Store) -> None:
    given_item(store)
    with pytest.raises(ConflictError), store.transaction() as tx:
        vaults.delete_site(tx, SiteId("s"))


# -- transactions ------------------------------------------------------------------------------------------


def test_a_transaction_that_raises_leaves_nothing_and_rings_nobody(store: Store) -> None:
    before = store.bell.count

    def fail() -> None:
        with store.transaction() as tx:
            vaults.create_site(tx, Site(SiteId("x"), "x", NOW))
            tx.wake()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    with store.reading() as tx:
        assert vaults.list_sites(tx) == []
    assert store.bell.count == before


def test_the_bell_rings_after_the_commit(store: Store) -> None:
    seen = store.bell.count
    found: list[int] = []

    def wait() -> None:
        assert store.bell.wait(seen, 20)
        with store.reading() as tx:
            found.append(len(vaults.list_sites(tx)))

    waiter = threading.Thread(target=wait)
    waiter.start()
    with store.transaction() as tx:
        vaults.create_site(tx, Site(SiteId("x"), "x", NOW))
        tx.wake()
    waiter.join()
    assert found == [1]


def test_writers_at_the_same_time_wait_for_each_other(store: Store) -> None:
    item = given_item(store)
    failures: list[BaseException] = []

    def count() -> None:
        try:
            for _ in range(10):
                with store.transaction() as tx:
                    epoch = items.get(tx, item, lock=True).epoch
                    items.change(tx, item, epoch=epoch + 1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with store.reading() as tx:
        assert items.get(tx, item).epoch == 41


def test_a_reader_sees_one_state_while_another_writes(store: Store) -> None:
    item = given_item(store)
    with store.reading() as reader:
        assert items.get(reader, item).epoch == 1
        with store.transaction() as tx:
            items.change(tx, item, epoch=5)
        assert items.get(reader, item).epoch == 1
    with store.reading() as reader:
        assert items.get(reader, item).epoch == 5


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(sa.exc.StatementError), store.transaction() as tx:
        vaults.create_site(tx, Site(SiteId("x"), "x", NOW.replace(tzinfo=None)))


# -- commands, events, points ------------------------------------------------------------------------------


def put(store: Store, command: str, node: str = "n1", **args: Any) -> None:
    with store.transaction() as tx:
        commands.put(
            tx, {"id": command, "node_id": node, "kind": "k", "epoch": 1, "args": args, "created": NOW}
        )


def open_commands(store: Store, node: str = "n1", running: tuple[str, ...] = ()) -> list[str]:
    with store.reading() as tx:
        return [str(command.id) for command in commands.deliverable(tx, NodeId(node), running)]


def find(store: Store, command: str) -> Any:
    with store.reading() as tx:
        return commands.find(tx, CommandId(command))


def test_a_command_is_put_once_and_delivered_in_order_until_answered(store: Store) -> None:
    given_item(store)
    for command in ("z", "a", "z"):
        put(store, command)
    put(store, "other", node="n2")
    assert open_commands(store) == ["z", "a"]
    assert open_commands(store, running=("z",)) == ["a"]
    with store.transaction() as tx:
        commands.mark_delivered(tx, [CommandId("z")], NOW)
        commands.mark_delivered(tx, [CommandId("z")], NOW + timedelta(hours=1))
    assert open_commands(store) == ["z", "a"]
    assert (find(store, "z").deliveries, find(store, "z").delivered) == (2, NOW)


def test_the_first_result_wins_and_strikes_out_the_key(store: Store) -> None:
    given_item(store)
    put(store, "c", digest_key="ff", name="web")
    command = find(store, "c")
    with store.transaction() as tx:
        assert commands.answer(tx, command, NOW, result={"n": 1})
    with store.transaction() as tx:
        assert not commands.answer(tx, command, NOW, error={"code": "late"})
    found = find(store, "c")
    assert (found.state, found.result, found.error) == (CommandState.DONE, {"n": 1}, None)
    assert found.args == {"name": "web"}
    assert open_commands(store) == []


def test_only_a_command_that_was_never_fetched_can_be_withdrawn(store: Store) -> None:
    given_item(store)
    put(store, "fetched")
    put(store, "waiting")
    with store.transaction() as tx:
        commands.mark_delivered(tx, [CommandId("fetched")], NOW)
    with store.transaction() as tx:
        assert not commands.withdraw(tx, find(store, "fetched"), {"code": "timeout"}, NOW)
        assert commands.withdraw(tx, find(store, "waiting"), {"code": "timeout"}, NOW)
    assert open_commands(store) == ["fetched"]


def test_an_event_with_a_key_is_written_once(store: Store) -> None:
    with store.transaction() as tx:
        events.add(tx, events.NewEvent(NOW, "a", "x", once="key"))
        assert events.written(tx, "key")
    with pytest.raises(ConflictError), store.transaction() as tx:
        events.add(tx, events.NewEvent(NOW, "a", "x", once="key"))
    with store.transaction() as tx:
        events.add(tx, events.NewEvent(NOW, "b", "x"))
        events.add(tx, events.NewEvent(NOW, "b", "x"))
    with store.reading() as tx:
        newest_first = events.listed(tx)
        assert [event.code for event in newest_first] == ["b", "b", "a"]
        assert [event.code for event in events.listed(tx, after=newest_first[-1].id)] == ["b", "b"]


def test_points_follow_the_journal(store: Store) -> None:
    item = given_item(store)
    made = [
        Point(item, sequence, 1, NOW, f"{sequence:064x}", "delta", "crash", 1 << 40) for sequence in (1, 2, 3)
    ]
    with store.transaction() as tx:
        points.add(tx, made)
        points.remove(tx, item, {1})
    with store.reading() as tx:
        assert points.listed(tx, item) == [made[2], made[1]]
        assert points.sequences(tx, item) == {2, 3}
        with pytest.raises(NotFoundError, match="recovery point 1"):
            points.get(tx, item, 1)


def test_a_group_point_is_one_that_every_member_has(store: Store) -> None:
    web, db = given_item(store, "web"), given_item(store, "db")
    group = Group(GroupId("g"), "shop", 1, 0, NOW)
    with store.transaction() as tx:
        groups.add(tx, group)
        groups.change_members(tx, group, [web, db], [])
        for item, held in ((web, (1, 2, 3)), (db, (1, 3))):
            points.add(
                tx,
                [
                    Point(
                        item,
                        10 + number,
                        1,
                        NOW + timedelta(seconds=number),
                        "d",
                        "delta",
                        "application" if item == web else "crash",
                        0,
                        group.id,
                        number,
                    )
                    for number in held
                ],
            )
        groups.note_number(tx, group.id, 3)
        groups.note_number(tx, group.id, 2)
    with store.reading() as tx:
        assert groups.get(tx, "shop").number == 3
        assert [item.name for item in groups.members(tx, group.id)] == ["db", "web"]
        found = groups.complete(tx, group.id, [web, db], limit=10)
        assert [(point.number, point.consistency.value) for point in found] == [(3, "crash"), (1, "crash")]
        assert found[0].sequences == {web: 13, db: 13}
        assert groups.complete(tx, group.id, [web, db], number=2) == []
        assert [point.number for point in groups.complete(tx, group.id, [web], limit=2)] == [3, 2]
    other = Group(GroupId("h"), "other", 1, 0, NOW)
    with store.transaction() as tx:
        groups.add(tx, other)
    with store.transaction() as tx, pytest.raises(ConflictError):
        groups.change_members(tx, other, [web], [])  # an item is in one group
    with store.transaction() as tx:
        groups.delete(tx, group.id)
        groups.delete(tx, other.id)
    with store.reading() as tx:
        assert groups.listed(tx) == []
        assert groups.of_item(tx, web) is None


def test_many_points_are_added_and_removed_at_once(store: Store) -> None:
    item = given_item(store)
    many = [Point(item, number, 1, NOW, "d", "delta", "crash", None) for number in range(1, 5001)]
    with store.transaction() as tx:
        points.add(tx, many)
    with store.transaction() as tx:
        points.remove(tx, item, set(range(1, 4999)))
    with store.reading() as tx:
        assert points.sequences(tx, item) == {4999, 5000}


# -- one service per database ------------------------------------------------------------------------------


def given_lock(url: str, lost: threading.Event | None = None) -> ServiceLock:
    return ServiceLock(sa.make_url(url), (lost or threading.Event()).set, check_every_s=60)


def test_a_second_service_on_the_same_postgresql_is_refused(postgres: PrivatePostgres) -> None:
    url = postgres.new_database()
    one, two = given_lock(url), given_lock(url)
    one.acquire(wait=False)
    with pytest.raises(ConflictError, match="another service"):
        two.acquire(wait=False)
    two.release()
    one.release()
    three = given_lock(url)
    assert three.acquire(wait=True)
    three.release()


def test_a_standby_waits_until_the_holder_is_gone_or_it_is_stopped(postgres: PrivatePostgres) -> None:
    url = postgres.new_database()
    holder, heir, idle = given_lock(url), given_lock(url), given_lock(url)
    holder.acquire(wait=False)
    stopping, waits, has = threading.Event(), threading.Event(), threading.Event()

    def take_over() -> None:
        if heir.acquire(wait=True, waiting=waits.set):
            has.set()

    thread = threading.Thread(target=take_over)
    thread.start()
    assert waits.wait(20)
    stopping.set()
    assert idle.acquire(wait=True, stopping=stopping) is False
    assert not has.is_set()
    holder.release()
    assert has.wait(20)
    thread.join()
    heir.release()
    idle.release()


def test_a_standby_outlives_a_restart_of_its_database(postgres: PrivatePostgres) -> None:
    url = postgres.new_database()
    holder, heir = given_lock(url), given_lock(url)
    holder.acquire(wait=False)
    waits, has = threading.Event(), threading.Event()

    def take_over() -> None:
        if heir.acquire(wait=True, waiting=waits.set):
            has.set()

    thread = threading.Thread(target=take_over)
    thread.start()
    assert waits.wait(20)
    postgres.stop()
    postgres.start()
    assert has.wait(20)
    thread.join()
    holder.release()
    heir.release()


def test_a_service_that_loses_its_lock_is_told_at_once(postgres: PrivatePostgres) -> None:
    url = postgres.new_database()
    store = Store.open(url)
    lost = threading.Event()
    lock = given_lock(url, lost)  # which asks once a minute: it is the closed connection that tells
    lock.acquire(wait=False)
    with store.transaction() as tx:
        tx.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )
    assert lost.wait(20)
    lock.release()
    store.close()


def test_a_service_that_another_took_over_from_writes_nothing_any_more(postgres: PrivatePostgres) -> None:
    url = postgres.new_database()
    old, new = Store.open(url), Store.open(url)
    with old.transaction() as tx:
        vaults.create_vault(tx, "v", NOW)
    old.lead()
    with old.transaction() as tx:
        vaults.create_site(tx, Site(SiteId("a"), "before", NOW))
    new.lead()
    with pytest.raises(FencedError) as refused, old.transaction() as tx:
        vaults.create_site(tx, Site(SiteId("b"), "late", NOW))
    assert is_transient(refused.value), "a step must not record it as its outcome"
    with new.transaction() as tx:
        vaults.create_site(tx, Site(SiteId("c"), "after", NOW))
    with old.reading() as tx:
        assert [site.name for site in vaults.list_sites(tx)] == ["after", "before"]
    old.close()
    new.close()


def test_a_new_term_waits_for_what_is_being_written(postgres: PrivatePostgres) -> None:
    url = postgres.new_database()
    old, new = Store.open(url), Store.open(url)
    with old.transaction() as tx:
        vaults.create_vault(tx, "v", NOW)
    old.lead()
    leads = threading.Event()

    def take_over() -> None:
        new.lead()
        leads.set()

    thread = threading.Thread(target=take_over)
    with old.transaction() as tx:
        thread.start()
        assert not leads.wait(0.3)
        vaults.create_site(tx, Site(SiteId("a"), "just in time", NOW))
    assert leads.wait(20)
    thread.join()
    with new.reading() as tx:
        assert [site.name for site in vaults.list_sites(tx)] == ["just in time"]
    old.close()
    new.close()


# -- orders that were given up -----------------------------------------------------------------------------


def given_order(store: Store, identifier: str, kind: str, item: ItemId | None) -> None:
    with store.transaction() as tx:
        values = {"id": identifier, "node_id": "n1", "item_id": item, "kind": kind, "epoch": 1, "args": {}}
        commands.put(tx, {**values, "created": NOW})


def delivered(store: Store) -> list[str]:
    with store.transaction() as tx:
        found = commands.deliverable(tx, NodeId("n1"), (), lock=True)
        commands.mark_delivered(tx, [command.id for command in found], NOW)
        return [command.id for command in found]


def test_an_order_ends_the_delivered_orders_that_it_undoes(store: Store) -> None:
    item = given_item(store)
    for name, kind in (("f", "target.failover"), ("p", "source.policy"), ("r", "source.release")):
        given_order(store, name, kind, item)
    assert delivered(store) == ["f", "p", "r"]
    given_order(store, "a", "target.abandon", item)
    given_order(store, "q", "source.prepare", item)
    assert delivered(store) == ["p", "a", "q"]
    given_order(store, "f", "target.failover", item)  # the step that put it runs again: nothing new
    assert delivered(store) == ["p", "a", "q"]


def test_a_hand_out_that_is_noted_late_does_not_revive_what_was_given_up(store: Store) -> None:
    given_order(store, "f", "target.failover", given_item(store))
    with store.transaction() as tx:
        found = commands.find(tx, CommandId("f"))
        assert found is not None
        assert commands.give_up(tx, found, {"code": "timeout", "message": "late"}, NOW)
        assert not commands.give_up(tx, found, {}, NOW)
        commands.mark_delivered(tx, [found.id], NOW)
        assert not commands.answer(tx, found, NOW, result={})
        after = commands.find(tx, found.id)
    assert after is not None
    assert (after.state, after.cancelled, after.error) == (
        CommandState.FAILED,
        True,
        {"code": "timeout", "message": "late"},
    )
    assert delivered(store) == []


# -- pruning -----------------------------------------------------------------------------------------------


def test_old_rows_go_and_those_of_active_jobs_stay(store: Store) -> None:
    item = given_item(store)
    long_ago = NOW - timedelta(days=500)
    with store.transaction() as tx:
        jobs.add(
            tx,
            Job(
                JobId("j"), "disable", item, "web", JobState.NOT_STARTED, 0.0, "me", {}, long_ago, *[None] * 4
            ),
        )
        for name, job, ended in (
            ("old", None, 8),
            ("young", None, 6),
            ("active", "j", 8),
            ("open", None, None),
        ):
            values = {"id": name, "node_id": "n1", "item_id": item, "job_id": job, "kind": "k", "epoch": 1}
            commands.put(tx, {**values, "args": {}, "created": long_ago})
            if ended is not None:
                command = commands.find(tx, CommandId(name))
                assert command is not None
                commands.answer(tx, command, NOW - timedelta(days=ended), result={})
        before = {event.id for event in events.listed(tx)}
        for code, days, job in (("old", 91, None), ("young", 89, None), ("active", 91, "j")):
            events.add(tx, events.NewEvent(NOW - timedelta(days=days), code, "m", job_id=job))
        for path, days in (("/old", 5000), ("/young", 399)):  # old by the database's own clock, too
            audit.note(tx, audit.Line(NOW - timedelta(days=days), "a", "POST", path, "done"))
    with store.transaction() as tx:
        assert pruning.prune(tx, NOW) == 3
        assert pruning.prune(tx, NOW) == 0
        assert [
            each for each in ("old", "young", "active", "open") if commands.find(tx, CommandId(each))
        ] == ["young", "active", "open"]
        left = [event.code for event in events.listed(tx, after=0) if event.id not in before]
        assert left == ["young", "active"]
        assert [line["path"] for line in audit.trail(tx)] == ["/young"]


def test_events_beyond_the_most_that_are_kept_go_a_bounded_number_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "AT_ONCE", 3)
    with store.transaction() as tx:
        for number in range(10):
            events.add(tx, events.NewEvent(NOW, f"e{number}", "m"))
        assert [pruning.prune(tx, NOW, events_max=5) for _ in range(3)] == [3, 2, 0]
        assert [event.code for event in events.listed(tx, after=0)] == ["e5", "e6", "e7", "e8", "e9"]
