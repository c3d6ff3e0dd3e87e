"""`secondsite point`, `job`, `event`: what there is to go back to, what runs, what happened."""

from __future__ import annotations

from typing import Annotated

import typer

from secondsite.cli.client import connect
from secondsite.cli.following import NoWait, describe, finish, follow, progress_text
from secondsite.cli.output import EXIT_FAILED, Json, human_bytes, out, print_json, print_rows, reporting

points = typer.Typer(no_args_is_help=True)
jobs = typer.Typer(no_args_is_help=True)
events = typer.Typer(no_args_is_help=True)


@points.command("list", epilog="Example: secondsite point list web-1 --limit 20")
def list_points(
    item: Annotated[str, typer.Argument(help="The item's name or id.")],
    limit: Annotated[int, typer.Option(min=1, max=10000, help="At most so many, newest first.")] = 100,
    as_json: Json = False,
) -> None:
    """List an item's recovery points, newest first."""
    with reporting(as_json=as_json):
        rows = connect().get(f"/items/{item}/points", limit=limit)
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("POINT", lambda row: row["sequence"]),
                ("TIME", lambda row: row["time"]),
                ("CONSISTENCY", lambda row: row["consistency"]),
                ("KIND", lambda row: row["kind"]),
                ("EPOCH", lambda row: row["epoch"]),
                ("CHANGED", lambda row: human_bytes(row["changed"])),
            ],
            empty="The item has no recovery point yet.",
        )


@points.command("drop-diverged", epilog="Example: secondsite point drop-diverged web-1")
def drop_diverged(
    item: Annotated[str, typer.Argument(help="The item's name or id.")], as_json: Json = False
) -> None:
    """Give up the point that a reversal kept of the old side's disks. What only it holds is gone then."""
    with reporting(as_json=as_json):
        row = connect().delete(f"/items/{item}/points/diverged")
        if as_json:
            print_json(row)
        else:
            out.print(f"Point {row['sequence']} goes as soon as its node has given it up.")


@jobs.command("list", epilog="Example: secondsite job list --item web-1")
def list_jobs(
    item: Annotated[str | None, typer.Option(help="Only of this item.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, such as InProgress.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    with reporting(as_json=as_json):
        rows = connect().get("/jobs", item=item, state=state, limit=limit)
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("JOB", lambda row: row["id"]),
                ("OPERATION", lambda row: row["operation"]),
                ("ITEM", lambda row: row["item"]),
                ("STATE", lambda row: row["state"]),
                ("SECONDS", lambda row: None if row["seconds"] is None else f"{row['seconds']:.1f}"),
                ("BY", lambda row: row["requested_by"]),
                ("ERROR", lambda row: (row["error"] or {}).get("message")),
            ],
            empty="There are no jobs.",
        )


@jobs.command("show", epilog="Example: secondsite job show 0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f")
def show_job(job: Annotated[str, typer.Argument(help="The job's id.")], as_json: Json = False) -> None:
    """Show a job with its tasks."""
    with reporting(as_json=as_json):
        row = connect().get(f"/jobs/{job}")
        if as_json:
            print_json(row)
            return
        describe(row)
        if row["waits_for"]:
            out.print(f"waits for {row['waits_for']}", markup=False)
        out.print()
        print_rows(
            row["tasks"],
            [
                ("TASK", lambda task: task["name"]),
                ("STATE", lambda task: task["state"]),
                ("PROGRESS", lambda task: progress_text(task["progress"] or {})),
                ("ERROR", lambda task: (task["error"] or {}).get("message")),
            ],
            empty="The job has no tasks yet.",
        )


@jobs.command("wait", epilog="Example: secondsite job wait 0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f")
def wait_job(job: Annotated[str, typer.Argument(help="The job's id.")], as_json: Json = False) -> None:
    """Wait until a job ends, with live progress; exit code 1 if it failed."""
    with reporting(as_json=as_json):
        api = connect()
        finish(api, api.get(f"/jobs/{job}"), as_json=as_json, no_wait=False)


@jobs.command(
    "resume",
    epilog='Example: secondsite job resume JOB --confirm "I checked that web-1 does not run on host-2"',
)
def resume_job(
    job: Annotated[str, typer.Argument(help="The id of a suspended job.")],
    confirm: Annotated[str, typer.Option(help="The sentence that the job asks for, word by word.")],
    as_json: Json = False,
) -> None:
    """Let a suspended job go on by vouching for what it could not find out by itself."""
    with reporting(as_json=as_json):
        row = connect().post(f"/jobs/{job}/resume", {"confirm": confirm})
        if as_json:
            print_json(row)
        else:
            describe(row)


@jobs.command("cancel", epilog="Example: secondsite job cancel 0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f")
def cancel_job(
    job: Annotated[str, typer.Argument(help="The job's id.")], no_wait: NoWait = False, as_json: Json = False
) -> None:
    """Have a job take back what it did and end; refused once it is past its point of no return."""
    with reporting(as_json=as_json):
        api = connect()
        row = api.post(f"/jobs/{job}/cancel", {})
        if not no_wait:
            row = follow(api, str(row["id"]))
        if as_json:
            print_json(row)
        else:
            describe(row)
        if row["state"] in {"Succeeded", "Failed"}:
            raise typer.Exit(EXIT_FAILED)  # it was too late


@jobs.command("retry", epilog="Example: secondsite job retry 0b9c3a52-6f0e-4f43-9c0c-5a1b2c3d4e5f")
def retry_job(
    job: Annotated[str, typer.Argument(help="The id of a job that failed or was cancelled.")],
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Begin the operation of a failed job again with the same parameters, as a new job."""
    with reporting(as_json=as_json):
        api = connect()
        finish(api, api.post(f"/jobs/{job}/retry", {}), as_json=as_json, no_wait=no_wait)


@events.command("list", epilog="Example: secondsite event list --item web-1 --limit 20")
def list_events(
    item: Annotated[str | None, typer.Option(help="Only of this item.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List what happened, newest first."""
    with reporting(as_json=as_json):
        rows = connect().get("/events", item=item, limit=limit)
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("TIME", lambda row: row["time"]),
                ("SEVERITY", lambda row: row["severity"]),
                ("CODE", lambda row: row["code"]),
                ("MESSAGE", lambda row: row["message"]),
            ],
            empty="Nothing has happened yet.",
        )
