"""`item`, `point`, `job`, `event`: the main job, from protecting a machine to going back."""

from __future__ import annotations

from secondsite.errors import CorruptError
from secondsite.service.store import jobs
from secondsite.service.vocabulary import Role, TaskState
from support.cli_world import Cli
from support.service_world import failing


def test_protectable_lists_machines_and_what_stands_in_the_way(cli: Cli) -> None:
    (row,) = cli.json("item", "protectable")
    assert (row["name"], row["ready"]) == ("web-1", True)
    assert "web-1 cloud-ams host-ams running vda, vdb yes" in cli.ok("item", "protectable").words
    assert [row["name"] for row in cli.json("item", "protectable", "--cloud", "cloud-ams")] == ["web-1"]


def test_protect_follows_the_job_to_its_end(cli: Cli) -> None:
    job = cli.json("item", "protect", "web-1", "--exclude-disk", "vdb", "--name", "shop")
    assert (job["operation"], job["state"], job["item"]) == ("enable", "Succeeded", "shop")
    assert list(cli.json("item", "show", "shop")["disks"]) == ["vda"]


def test_protect_for_people_ends_in_one_line(cli: Cli) -> None:
    said = cli.ok("item", "protect", "web-1")
    assert said.out.startswith("Succeeded: enable web-1")
    assert "job " in said.out


def test_no_wait_returns_with_the_jobs_id_and_asks_nothing_more(cli: Cli) -> None:
    job = cli.json("item", "protect", "web-1", "--no-wait")
    assert job["state"] == "NotStarted"
    assert cli.transport.requests[-1][:2] == ("POST", "/api/v1/items")
    assert cli.world.started == [job["id"]]
    ended = cli.json("job", "wait", job["id"])
    assert ended["state"] == "Succeeded"


def test_list_and_show_tell_state_health_and_what_is_allowed(protected: Cli) -> None:
    (row,) = protected.json("item", "list")
    assert row["state"] == "protected"
    assert "web-1 protected none ams > rtm normal 0.0 s 1 fast" in protected.ok("item", "list").words
    said = protected.ok("item", "show", "web-1").words
    for essential in (
        "state protected",
        "direction ams > rtm",
        "RPO 0.0 s (alert above 60 s)",
        "disks vda 1.0 GiB, vdb 1.0 MiB",
        "health normal",
        "test-failover yes",
        "commit no",
    ):
        assert essential in said


def test_show_says_why_an_item_is_not_healthy(protected: Cli) -> None:
    protected.world.clock.turn(seconds=300)
    said = protected.ok("item", "show", "web-1").words
    assert "health critical" in said
    assert "the policy allows 60 s" in said


def test_points_are_listed_newest_first(protected: Cli) -> None:
    protected.world.point(protected.world.item())
    assert [row["sequence"] for row in protected.json("point", "list", "web-1")] == [2, 1]
    assert [row["sequence"] for row in protected.json("point", "list", "web-1", "--limit", "1")] == [2]
    assert "POINT TIME CONSISTENCY KIND EPOCH CHANGED" in protected.ok("point", "list", "web-1").words


def test_there_and_back(protected: Cli) -> None:
    tested = protected.json("item", "test-failover", "web-1", "--point", "1", "--network", "none")
    assert tested["result"]["vm"]
    assert protected.world.args["target.test_start"]["sequence"] == 1
    assert protected.world.args["target.test_start"]["networks"] == {"lan": None}
    assert protected.json("item", "cleanup-test", "web-1")["state"] == "Succeeded"
    said = protected.ok("item", "failover", "web-1", "--planned", "--shutdown-timeout", "7")
    assert "Succeeded: planned-failover web-1" in said.out
    assert protected.world.args["source.prepare"]["shutdown_timeout_s"] == 7
    assert "ams > rtm" in protected.ok("item", "list").words
    assert protected.json("item", "commit", "web-1")["state"] == "Succeeded"
    assert protected.json("item", "reverse", "web-1")["state"] == "Succeeded"
    assert "rtm > ams" in protected.ok("item", "list").words
    assert protected.json("item", "disable", "web-1", "--delete-replica", "--force")["state"] == "Succeeded"
    assert protected.transport.requests[-3][2] == {"delete_replica": True, "force": True}
    assert protected.json("item", "list") == []
    assert [row["state"] for row in protected.json("item", "list", "--disabled")] == ["disabled"]


def test_disable_does_with_the_old_disks_what_the_policy_says_unless_told(protected: Cli) -> None:
    job = protected.json("item", "disable", "web-1", "--no-wait")
    assert protected.transport.requests[-1][2] == {"force": False}
    assert job["operation"] == "disable"


def test_a_job_that_fails_is_exit_code_1_with_its_error_and_hint(cli: Cli) -> None:
    cli.world.answers["source.start"] = failing("the disk is locked")
    said = cli.run("item", "protect", "web-1")
    assert said.code == 1
    assert said.out.startswith("Failed: enable web-1")
    assert "error [unavailable]: the disk is locked" in said.err
    machine = cli.run("job", "wait", cli.json("job", "list", "--state", "Failed")[0]["id"], "--json")
    assert machine.code == 1
    assert machine.json["error"]["message"] == "the disk is locked"


def test_jobs_are_listed_and_shown_with_their_tasks(protected: Cli) -> None:
    (row,) = protected.json("job", "list", "--item", "web-1")
    assert row["state"] == "Succeeded"
    listed = protected.ok("job", "list").out
    assert row["id"] in listed, "a name that is cut off can't be used"
    shown = protected.json("job", "show", row["id"])
    assert {task["state"] for task in shown["tasks"]} == {"Succeeded"}
    assert all(task["name"] in protected.ok("job", "show", row["id"]).out for task in shown["tasks"])


def test_events_are_listed(protected: Cli) -> None:
    rows = protected.json("event", "list", "--item", "web-1", "--limit", "3")
    assert rows
    assert rows[0]["message"] in protected.ok("event", "list").out


def test_a_failover_must_be_named(protected: Cli) -> None:
    said = protected.run("item", "failover", "web-1")
    assert (said.code, "add --planned" in said.err) == (2, True)
    assert protected.world.started == []


def test_a_refused_operation_says_why_and_what_to_do_instead(protected: Cli) -> None:
    said = protected.run("item", "commit", "web-1")
    assert said.code == 3
    assert "hint: " in said.err
    protected.ok("item", "test-failover", "web-1")
    said = protected.run("item", "failover", "web-1", "--planned")
    assert said.code == 3
    assert "cleanup-test" in said.err


def test_what_a_role_may_not_do_is_exit_code_5(protected: Cli) -> None:
    reader = Cli.of(protected.world, Role.READER)
    reader.ok("item", "list")
    said = reader.run("item", "test-failover", "web-1")
    assert said.code == 5
    assert "Operator" in said.err


def test_the_worst_day_from_the_command_line(protected: Cli) -> None:
    world = protected.world
    world.point(world.item())
    job = protected.json(
        "item",
        "unplanned-failover",
        "web-1",
        "--point",
        "1",
        "--shutdown-source",
        "no",
        "--shutdown-timeout",
        "9",
    )
    assert (job["state"], job["result"]["point"]["sequence"]) == ("Succeeded", 1)
    sent = [
        body for _method, path, body in protected.transport.requests if path.endswith("/unplanned-failover")
    ]
    assert sent[-1] == {
        "sequence": 1,
        "shutdown_source": "no",
        "shutdown_timeout_s": 9,
    }
    assert "unplanned-commit-pending" in protected.ok("item", "list").out
    said = protected.ok("item", "change-point", "web-1", "--point", "2")
    assert said.out.startswith("Succeeded: change-point web-1")
    assert protected.json("item", "cancel", "web-1")["state"] == "Succeeded"
    assert protected.json("item", "pause", "web-1")["operation"] == "pause"
    assert protected.json("item", "show", "web-1")["state"] == "paused"
    assert protected.json("item", "resume", "web-1")["operation"] == "resume"
    assert protected.json("item", "resync", "web-1")["state"] == "Succeeded"
    assert protected.json("item", "show", "web-1")["state"] == "protected"


def test_the_latest_points_have_names(protected: Cli) -> None:
    world = protected.world
    world.point(world.item(), consistency="application")
    world.point(world.item())
    protected.ok(
        "item", "unplanned-failover", "web-1", "--point", "latest-app-consistent", "--shutdown-source", "no"
    )
    assert world.args["target.failover"]["sequence"] == 2
    protected.ok("item", "change-point", "web-1", "--point", "latest")
    assert world.args["target.failover"]["sequence"] is None
    said = protected.run("item", "change-point", "web-1", "--point", "yesterday")
    assert (said.code, "secondsite point list" in said.err) == (2, True)


def test_a_failed_job_is_retried_and_one_that_ended_is_not_cancelled(protected: Cli) -> None:
    protected.world.answers["target.failover"] = failing("no memory")
    assert protected.run("item", "unplanned-failover", "web-1").code == 1
    job = protected.json("job", "list", "--state", "Failed")[0]["id"]
    del protected.world.answers["target.failover"]
    again = protected.json("job", "retry", job)
    assert (again["state"], again["parameters"]["retry_of"]) == ("Succeeded", job)
    said = protected.run("job", "cancel", again["id"])
    assert said.code == 3
    assert "nothing to cancel" in said.err


def test_a_job_that_has_not_begun_is_cancelled(protected: Cli) -> None:
    job = protected.json("item", "unplanned-failover", "web-1", "--no-wait")
    said = protected.ok("job", "cancel", job["id"])
    assert said.out.startswith("Cancelled: unplanned-failover web-1")
    assert protected.json("item", "show", "web-1")["state"] == "protected"


def test_a_kept_point_is_given_up(protected: Cli) -> None:
    said = protected.run("point", "drop-diverged", "web-1")
    assert said.code == 4
    protected.world.point(protected.world.item(), kind="diverged")
    assert "Point 2 goes" in protected.ok("point", "drop-diverged", "web-1").out


def test_an_initial_replication_is_put_off(cli: Cli) -> None:
    cli.ok("item", "protect", "web-1", "--start-at", "2026-11-24T01:00Z", "--no-wait")
    assert cli.transport.requests[-1][2]["start_at"] == "2026-11-24T01:00Z"
    said = cli.run("item", "protect", "web-1", "--start-at", "2027-01-01T00:00Z")
    assert (said.code, "7 days" in said.err) == (2, True)


def test_protect_with_a_seed_names_the_folder_of_the_target(cli: Cli) -> None:
    cli.world.answers["target.create"] = lambda _command: {"seeded": {"vda": "vda.raw"}}
    job = cli.json("item", "protect", "web-1", "--seed", "/mnt/medium/web-1")
    assert (job["state"], job["parameters"]["seed"]) == ("Succeeded", "/mnt/medium/web-1")
    assert job["result"]["seeded"] == {"vda": "vda.raw"}
    assert cli.world.args["target.create"]["seed"] == "/mnt/medium/web-1"


def test_a_seed_that_is_no_absolute_path_is_exit_code_2(cli: Cli) -> None:
    said = cli.run("item", "protect", "web-1", "--seed", "medium")
    assert said.code == 2
    assert "the target node's host" in said.err


def test_a_seed_that_is_damaged_is_exit_code_1_with_what_to_do(cli: Cli) -> None:
    error = CorruptError("/mnt/vda.raw does not hold what was exported", hint="export it again")
    cli.world.answers["target.create"] = lambda _command: error
    said = cli.run("item", "protect", "web-1", "--seed", "/mnt")
    assert said.code == 1
    assert "error [corrupt]: /mnt/vda.raw does not hold what was exported" in said.err
    assert "hint: export it again" in said.err


def test_list_and_show_tell_how_far_a_seeding_is(cli: Cli) -> None:
    job = cli.json("item", "protect", "web-1", "--seed", "/mnt", "--no-wait")
    progress = {"fraction": 0.37, "text": "seeding from vda.raw", "bytes": 1 << 30, "total_bytes": 4 << 30}
    with cli.world.store.transaction() as tx:
        jobs.put_task(tx, job["id"], 0, "create the journal")
        jobs.change_task(tx, job["id"], 0, state=TaskState.IN_PROGRESS, progress=progress)
    assert "web-1 enabling 37% none" in cli.ok("item", "list").words
    under_way = "under way enable: create the journal: 1.0 GiB of 4.0 GiB, seeding from vda.raw"
    assert under_way in cli.ok("item", "show", "web-1").words
    assert cli.json("item", "show", "web-1")["active_job"]["task"]["progress"] == progress
