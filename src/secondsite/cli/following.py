"""Watching a job until it ends, with its tasks' progress on standard error."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from secondsite.cli.output import EXIT_FAILED, err, human_bytes, out, print_fields, print_json
from secondsite.errors import SecondSiteError

if TYPE_CHECKING:
    from secondsite.api_client import ApiClient

POLL_S = 0.2
AWAY_POLL_S = 1.0
AWAY_S = 300.0
"""The service may restart under a running job; we wait so long for it to come back."""
ENDED: Final = frozenset({"Succeeded", "Failed", "Cancelled"})

NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Return as soon as the job is accepted, with its id.")
]


def finish(api: ApiClient, job: Mapping[str, Any], *, as_json: bool, no_wait: bool) -> None:
    """Follow the job (unless `no_wait`), print how it ended, and leave with exit code 1 if it failed."""
    if not no_wait:
        job = follow(api, str(job["id"]))
    if as_json:
        print_json(job)
    else:
        describe(job)
    if job["state"] in {"Failed", "Cancelled"}:
        raise typer.Exit(EXIT_FAILED)


def follow(api: ApiClient, job_id: str) -> dict[str, Any]:
    """Return the job once it has ended."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=False, disable=not sys.stderr.isatty()) as bars:
        shown: dict[int, TaskID] = {}
        asked = False
        while True:
            job = _ask(api, job_id)
            for task in job.get("tasks", []):
                _show(bars, shown, task)
            bars.refresh()  # what was there only between two pictures is seen, too
            if job["state"] in ENDED:
                return job
            if job["state"] == "Suspended" and not asked:
                asked = True
                _ask_operator(job)
            time.sleep(POLL_S)


def describe(job: Mapping[str, Any]) -> None:
    """Print a job for people."""
    state, operation, item = job["state"], job["operation"], job.get("item") or ""
    colour = {"Succeeded": "green", "Failed": "red", "Cancelled": "yellow"}.get(state, "cyan")
    seconds = "" if job.get("seconds") is None else f" in {job['seconds']:.1f} s"
    out.print(f"[{colour}]{escape(state)}[/]: {escape(operation)} {escape(item)}{seconds}  (job {job['id']})")
    if job.get("result"):
        print_fields({key: value for key, value in job["result"].items() if not isinstance(value, dict)})
    if job.get("error"):
        error = job["error"]
        err.print(
            f"[bold red]error[/] \\[{escape(str(error.get('code')))}]: {escape(str(error.get('message')))}"
        )
        if error.get("hint"):
            err.print(f"  [bold]hint[/]: {escape(str(error['hint']))}")


def _ask_operator(job: Mapping[str, Any]) -> None:
    result = job.get("result") or {}
    err.print(f"[bold yellow]waits for you[/]: {escape(str(result.get('waits_for')))}")
    err.print(
        f"  when it is so: secondsite job resume {job['id']} --confirm {shlex.quote(str(result.get('confirm')))}",
        markup=False,
    )


def _ask(api: ApiClient, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + AWAY_S
    while True:
        try:
            job: dict[str, Any] = api.get(f"/jobs/{job_id}")
            return job
        except SecondSiteError as error:
            if error.code != "unavailable" or time.monotonic() > deadline:
                raise
            time.sleep(AWAY_POLL_S)


def _show(bars: Progress, shown: dict[int, TaskID], task: Mapping[str, Any]) -> None:
    ordinal, state = int(task["ordinal"]), task["state"]
    if state in {"NotStarted", "Skipped"} and ordinal not in shown:
        return
    if ordinal not in shown:
        shown[ordinal] = bars.add_task(escape(task["name"]), total=None, detail="")
    progress = task.get("progress") or {}
    fraction = progress.get("fraction")
    done, total = progress.get("bytes"), progress.get("total_bytes")
    if fraction is None and done is not None and total:
        fraction = min(1.0, done / total)
    if state in ENDED:
        bars.update(shown[ordinal], total=1, completed=1, detail=_ended_detail(task))
        return
    bars.update(
        shown[ordinal],
        total=None if fraction is None else 1.0,
        completed=fraction or 0.0,
        detail=escape(progress_text(progress)),
    )


def progress_text(progress: Mapping[str, Any]) -> str:
    """Return how far a task is, in words."""
    parts = []
    if progress.get("bytes") is not None and progress.get("total_bytes"):
        parts.append(f"{human_bytes(progress['bytes'])} of {human_bytes(progress['total_bytes'])}")
    if progress.get("rate"):
        parts.append(f"{human_bytes(progress['rate'])}/s")
    if progress.get("eta_s") is not None:
        parts.append(f"{progress['eta_s']:.0f} s left")
    if progress.get("text"):
        parts.append(str(progress["text"]))
    return ", ".join(parts)


def _ended_detail(task: Mapping[str, Any]) -> str:
    if task["state"] != "Succeeded":
        return f"[red]{escape(str((task.get('error') or {}).get('message', task['state'])))}[/]"
    return "[green]done[/]"
