"""The service under attack: kill -9 in the middle, failing and absent nodes, callers without the right to call."""

from __future__ import annotations

import json
import socket
import sqlite3
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from secondsite.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    RemoteError,
    UnauthenticatedError,
    UnavailableError,
)
from secondsite.service.daemon import Options, Service, init
from secondsite.ship.client import Endpoint, JsonClient
from secondsite.ship.identity import SERVICE, CaOnly, CertificateAuthority
from support.private_postgres import PrivatePostgres
from support.service_node import FakeNode, ServiceProcess, TwoSites, machine, two_sites, until

pytestmark = [pytest.mark.integration, pytest.mark.fault]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoSites]:
    """Two sites with web-1 protected, for tests that leave the service alive and the item as it was."""
    with two_sites(tmp_path_factory.mktemp("calm")) as found:
        found.protect()
        yield found


@pytest.mark.parametrize("kind", ["source.prepare", "target.failover"])
def test_a_failover_goes_on_after_kill_9_and_each_command_runs_once(sites: TwoSites, kind: str) -> None:
    sites.protect()
    node = sites.a if kind == "source.prepare" else sites.b
    reached = node.hold(kind)
    job = sites.post("/items/web-1/planned-failover")
    assert reached.wait(20)
    sites.service.kill()
    node.let_go(kind)  # the node ends its work while nobody listens
    sites.service.start()
    done = sites.job(job)
    assert done["state"] == "Succeeded", (done, sites.service.log())
    item = sites.item()
    assert (item["state"], item["epoch"], item["active_side"]) == ("commit-pending", 2, "recovery")
    assert [k for k in sites.a.kinds() if k != "source.start"] == ["source.prepare", "source.demote"]
    assert [k for k in sites.b.kinds() if k != "target.create"] == ["target.failover"]
    assert all(count == 1 for each in sites.nodes for count in each.ran.values())
    sites.succeed("commit")
    sites.succeed("reverse")


def test_a_terminated_service_ends_cleanly_and_its_workflows_go_on_after_the_next_start(
    sites: TwoSites,
) -> None:
    sites.protect()
    reached = sites.b.hold("target.test_start")
    job = sites.post("/items/web-1/test-failover")
    assert reached.wait(20)
    assert sites.service.stop() == 0
    assert not (sites.service.data_dir / "service.json").exists()
    sites.service.start()
    sites.b.let_go("target.test_start")
    assert sites.job(job)["state"] == "Succeeded"
    assert sites.item()["test_state"] == "running"


def test_a_failed_prepare_is_rolled_back(sites: TwoSites) -> None:
    def hang(_command: dict[str, object]) -> dict[str, object]:
        raise UnavailableError("the guest does not shut down", hint="look at its console")

    sites.protect()
    sites.a.handlers["source.prepare"] = hang
    job = sites.run("planned-failover")
    assert (job["state"], job["error"]["code"]) == ("Failed", "unavailable")
    assert job["error"]["hint"] == "look at its console"
    assert job["result"]["rolled_back"] is True
    item = sites.item()
    assert (item["state"], item["epoch"], item["active_side"]) == ("protected", 1, "primary")
    assert sites.a.kinds()[-1] == "source.release"
    assert item["allowed_operations"]["planned-failover"]["allowed"] is True


def test_an_old_side_that_is_down_steps_down_when_it_is_back(tmp_path: Path) -> None:
    with two_sites(tmp_path, speed=20) as sites:
        sites.protect()
        reached = sites.b.hold("target.failover")
        job = sites.post("/items/web-1/planned-failover")
        assert reached.wait(20)
        sites.a.stop()
        sites.b.let_go("target.failover")
        done = sites.job(job)
        assert done["state"] == "Succeeded"
        assert "has not confirmed" in done["result"]["information"]
        codes = [reason["code"] for reason in sites.item()["health"]["reasons"]]
        assert "demotion-pending" in codes
        sites.a.start()
        until(
            lambda: "demotion-pending" not in [r["code"] for r in sites.item()["health"]["reasons"]],
            "the old side to step down",
        )
        assert sites.a.args("source.demote") == {"new_epoch": 2}


def test_what_was_accepted_but_never_begun_begins_after_the_restart(tmp_path: Path) -> None:
    """The process dies between the transaction that makes the job and the start of its workflow."""
    from secondsite.model.item import Operation
    from secondsite.service.context import Context
    from secondsite.service.store.database import Store
    from secondsite.service.usecases.operations import start_operation
    from support.service_world import ME

    with two_sites(tmp_path) as sites:
        sites.protect()
        sites.service.kill()
        store = Store(f"sqlite:///{sites.service.data_dir / 'secondsite.sqlite'}")
        authority = CertificateAuthority.create("unused")
        ctx = Context(store, authority, lambda _job: None)
        job = start_operation(ctx, ME, "web-1", Operation.TEST_FAILOVER)
        store.close()
        sites.service.start()
        assert sites.job({"id": job.id, "operation": "test"})["state"] == "Succeeded"


def test_the_story_holds_on_postgresql_with_kill_9(tmp_path: Path) -> None:
    server = PrivatePostgres()
    try:
        with two_sites(tmp_path, server.new_database()) as sites:
            sites.protect()
            reached = sites.b.hold("target.failover")
            job = sites.post("/items/web-1/planned-failover")
            assert reached.wait(20)
            sites.service.kill()
            sites.b.let_go("target.failover")
            sites.service.start()
            assert sites.job(job)["state"] == "Succeeded"
            sites.succeed("commit")
            sites.succeed("reverse")
            assert all(count == 1 for each in sites.nodes for count in each.ran.values())
            assert not (sites.service.data_dir / "workflows.sqlite").exists()
    finally:
        server.close()


def test_a_service_whose_database_goes_away_ends_and_goes_on_after_the_next_start(tmp_path: Path) -> None:
    server = PrivatePostgres()
    try:
        with two_sites(tmp_path, server.new_database()) as sites:
            sites.protect()
            reached = sites.b.hold("target.failover")
            job = sites.post("/items/web-1/planned-failover")
            assert reached.wait(20)
            server.stop()
            assert sites.service.process is not None
            assert sites.service.process.wait(60) != 0
            assert "the lock on the database was lost" in sites.service.log()
            server.start()
            sites.b.let_go("target.failover")
            sites.service.start()
            done = sites.job(job)
            assert done["state"] == "Succeeded", (done["error"], sites.service.log()[-3000:])
            assert all(count == 1 for each in sites.nodes for count in each.ran.values())
    finally:
        server.close()


# -- who may call ------------------------------------------------------------------------------------------


def test_a_caller_without_a_certificate_of_ours_gets_nothing(calm: TwoSites, tmp_path: Path) -> None:
    nodes = calm.service.addresses["nodes"]
    endpoint = Endpoint(nodes["host"], nodes["port"], SERVICE)
    ca = Path(calm.service.addresses["ca"]).read_bytes()
    calls = ("poll", "progress", "result", "report")
    with JsonClient(endpoint, CaOnly(ca)) as nobody:
        for call in calls:
            with pytest.raises(UnauthenticatedError):
                nobody.post(f"/node/v1/{call}", {"wait_s": 0, "running": []})
    foreign = CertificateAuthority.create("foreign").issue_credentials(calm.a.id, tmp_path / "foreign")
    foreign.ca_file.write_bytes(ca)  # it trusts our service; the service must not trust it
    with JsonClient(endpoint, foreign) as stranger:
        for call in calls:
            with pytest.raises((UnauthenticatedError, UnavailableError)):
                stranger.post(f"/node/v1/{call}", {"wait_s": 0, "running": []})


def test_a_node_sees_and_answers_only_its_own_commands(calm: TwoSites) -> None:
    reached = calm.b.hold("target.test_start")
    job = calm.post("/items/web-1/test-failover")
    assert reached.wait(20)
    command = f"{job['id']}:0:target.test_start"
    for call, body in (
        ("result", {"result": {"vm": "evil", "sequence": 1}}),
        ("progress", {"fraction": 1.0}),
    ):
        with pytest.raises(RemoteError) as refused:
            calm.a.client.post(f"/node/v1/{call}", {"command": command, **body})
        assert refused.value.code == "not_found"
    answer = calm.a.client.post("/node/v1/poll", {"wait_s": 0, "running": []})
    assert answer == {"commands": []}
    calm.b.let_go("target.test_start")
    assert calm.job(job)["result"]["vm"] != "evil"
    calm.succeed("cleanup-test")


def test_a_node_cannot_report_points_of_an_item_whose_journal_it_does_not_keep(calm: TwoSites) -> None:
    item = calm.item()
    calm.a.report_point(item["id"], 99, 1)
    assert calm.item()["latest_point"] == item["latest_point"]


def test_a_removed_node_is_refused_at_its_next_call(calm: TwoSites) -> None:
    key = calm.post("/registration-keys", site="ams", uses_max=1)["key"]
    node = FakeNode(calm.service.addresses, key, "third", calm.service.data_dir.parent / "third")
    node.report()
    assert calm.api.delete("/nodes/third").status_code == 204
    with pytest.raises(UnauthenticatedError, match="removed"):
        node.report()
    node.client.close()
    with pytest.raises(UnauthenticatedError, match="used up"):
        FakeNode(calm.service.addresses, key, "fourth", calm.service.data_dir.parent / "fourth")


def test_people_need_a_token_and_the_authority_that_init_wrote(calm: TwoSites) -> None:
    with calm.service.people(None) as anonymous:
        assert anonymous.get("/health").json() == {"status": "ok"}
        refused = anonymous.get("/items")
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "unauthenticated"
    with (
        httpx.Client(verify=ssl.create_default_context()) as untrusting,
        pytest.raises(httpx.ConnectError, match="certificate verify failed"),
    ):
        untrusting.get(f"{calm.service.addresses['url']}/health")


def test_a_second_service_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    process = ServiceProcess(tmp_path / "data")
    try:
        process.init()
        process.start()
        second = Service(process.data_dir, Options(("127.0.0.1", 0), ("127.0.0.1", 0)))
        with pytest.raises(ConflictError):
            second.start()
    finally:
        process.close()


def test_a_machine_of_another_name_is_protected_beside_the_first(calm: TwoSites) -> None:
    calm.a.vms.append(machine("db-1"))
    calm.a.report_inventory()
    job = calm.job(calm.post("/items", vm="db-1", name="database"))
    assert job["state"] == "Succeeded"
    assert [item["name"] for item in calm.get("/items")] == ["database", "web-1"]


# -- in one process ----------------------------------------------------------------------------------------


def test_a_service_starts_and_stops_more_than_once_in_a_process(tmp_path: Path) -> None:
    init(tmp_path / "data", "test")
    options = Options(("127.0.0.1", 0), ("127.0.0.1", 0), monitor_every_s=0.05)
    threads = {thread.name for thread in threading.enumerate()}
    for _ in range(2):
        service = Service(tmp_path / "data", options)
        service.start()
        context = ssl.create_default_context(cafile=service.addresses["ca"])
        with httpx.Client(verify=context) as client:
            assert client.get(f"{service.addresses['url']}/health").status_code == 200
        service.stop()
        left = {thread.name for thread in threading.enumerate()} - threads
        assert not {name for name in left if name.startswith(("people", "https", "monitor", "service-lock"))}


def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    init(tmp_path / "data", "test")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = Options(("127.0.0.1", taken.getsockname()[1]), ("127.0.0.1", 0))
        with pytest.raises(UnavailableError, match="cannot listen"):
            Service(tmp_path / "data", options).start()
    service = Service(tmp_path / "data", Options(("127.0.0.1", 0), ("127.0.0.1", 0)))
    service.start()
    service.stop()


def test_a_folder_or_a_database_takes_one_vault(tmp_path: Path) -> None:
    first = init(tmp_path / "data", "test")
    assert first.token.startswith("sst_")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data/ca/ca.key").stat().st_mode) == 0o600
    with pytest.raises(ConflictError, match="holds a vault already"):
        init(tmp_path / "data", "again")
    with pytest.raises(ConflictError):
        init(tmp_path / "other", "again", f"sqlite:///{tmp_path / 'data/secondsite.sqlite'}")
    with pytest.raises(InvalidInputError, match="not a supported database"):
        init(tmp_path / "third", "test", "mysql://x/y")
    with pytest.raises(NotFoundError, match="holds no vault"):
        Service(tmp_path / "third").start()


def test_an_init_that_was_cut_can_be_done_again(tmp_path: Path) -> None:
    first = init(tmp_path / "data", "test")
    (tmp_path / "data/settings.json").unlink()  # what `init` writes last
    second = init(tmp_path / "data", "test")
    assert second.token != first.token
    assert second.ca_fingerprint != first.ca_fingerprint


def test_the_workflows_records_are_json(tmp_path: Path) -> None:
    """Who can write pickles into a database can run code in who reads it."""
    with two_sites(tmp_path) as sites:
        sites.protect()
        assert sites.service.stop() == 0
        with sqlite3.connect(sites.service.data_dir / "workflows.sqlite") as records:
            rows = records.execute("SELECT inputs, output, error FROM workflow_status").fetchall()
            rows += records.execute("SELECT output, error, NULL FROM operation_outputs").fetchall()
        records.close()
        values = [value for row in rows for value in row if value is not None]
        assert len(values) > 5
        for value in values:
            json.loads(value)
        key = sites.a.args("source.start")["digest_key"]
        assert not [value for value in values if key in value]
