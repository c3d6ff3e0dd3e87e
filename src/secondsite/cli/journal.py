"""`secondsite journal`: look at, check and get disks out of a journal, with nothing but its folder.

It needs no service, no database and no network. Images that were adopted as a base are reached through qemu-nbd;
journals with raw bases need not even that. Exit codes: 0 sound, 1 damage or failure, 2 and more as in output.py.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from secondsite import durable
from secondsite.cli.output import (
    EXIT_FAILED,
    Json,
    err,
    human_bytes,
    out,
    print_json,
    print_rows,
    reporting,
)
from secondsite.errors import (
    InvalidInputError,
    NotFoundError,
    SecondSiteError,
    UnavailableError,
)
from secondsite.model.ids import Sequence, parse_disk_key
from secondsite.model.manifest import format_time

if TYPE_CHECKING:  # what reads journals takes long to import, and every other command would wait for it
    from secondsite.journal import Base, BaseSpec, Journal, OpenBase, PointInfo

app = typer.Typer(no_args_is_help=True, help="Points in a journal, with nothing else running.")

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="An item's folder, or a store that holds several.")
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        help="Where a running node keeps its qemu-nbd sockets, if the base is an image that it uses.",
        show_default=False,
    ),
]


class Format(StrEnum):
    """What extract writes."""

    RAW = "raw"
    QCOW2 = "qcow2"


@app.command("ls", epilog="Example: secondsite journal ls /var/lib/secondsite/journals")
def list_points(folder: Folder, as_json: Json = False) -> None:
    """List the points of an item, or the items of a store."""
    with reporting(as_json=as_json):
        if _is_journal(folder):
            _list_points(folder, as_json=as_json)
        else:
            _list_items(folder, as_json=as_json)


@app.command(epilog="Example: secondsite journal verify /var/lib/secondsite/journals/6f1f4a3e-...")
def verify(folder: Folder, run_dir: RunDir = None, as_json: Json = False) -> None:
    """Compare everything in a journal with its digests. Exit code 1 if anything is damaged."""
    with reporting(as_json=as_json), _bases(folder, run_dir) as open_base:
        results = [_verify(path, open_base, as_json=as_json) for path in _journals(folder)]
    sound = not any(result["findings"] for result in results)
    if as_json:
        print_json({"sound": sound, "journals": results})
    elif sound:
        out.print(f"sound: {len(results)} journal(s), nothing is damaged")
    else:
        for result in results:
            print_rows(result["findings"], _FINDING_COLUMNS, empty=f"{result['path']}: sound")
    if not sound:
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog="Example: secondsite journal extract /var/lib/secondsite/journals/6f1f4a3e-... --disk vda "
    "--time 2026-11-23T05:00:00Z --output /tmp/vda.raw"
)
def extract(
    folder: Folder,
    output: Annotated[Path, typer.Option(help="File to write; with all or several disks, a folder to make.")],
    disk: Annotated[
        list[str] | None, typer.Option(help="Disk, such as vda; may be repeated. All without it.")
    ] = None,
    sequence: Annotated[
        int | None, typer.Option(help="Point to extract; the newest without it.", min=1)
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="The newest point not after this time (ISO 8601; UTC without a zone).")
    ] = None,
    format: Annotated[Format, typer.Option(help="Format of the images.")] = Format.RAW,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Write the disks of a point to images, each byte compared with its digest. On damage nothing is left behind."""
    from secondsite.journal import Journal
    from secondsite.journal.extract import extract_all, extract_disk

    with reporting(as_json=as_json), _bases(folder, run_dir) as open_base:
        if sequence is not None and time is not None:
            raise InvalidInputError("choose a point by --sequence or by --time, not by both")
        journal = Journal.open(_one_journal(folder), writable=False, open_base=open_base)
        wanted = _choose(journal, sequence, time)
        disks = [parse_disk_key(name) for name in dict.fromkeys(disk or sorted(journal.disks))]
        for key in disks:
            if key not in journal.disks:
                raise InvalidInputError(
                    f"the item has no disk {key}", hint="its disks are " + ", ".join(sorted(journal.disks))
                )
        convert = _to_qcow2 if format is Format.QCOW2 else None
        with (
            _bar(as_json=as_json) as bar,
            _comparing(bar) as compare,
            journal.view(wanted, purpose="extract", verify=True, progress=compare) as view,
        ):
            if disk is not None and len(disks) == 1:
                extract_disk(view, disks[0], output, convert=convert, progress=_track(bar, disks[0]))
                files = [output]
            else:
                files = extract_all(
                    view,
                    disks,
                    output,
                    suffix=format.value,
                    convert=convert,
                    progress=lambda key: _track(bar, key),
                )
            point = _point_row(next(p for p in journal.points() if p.sequence == view.sequence))
    if as_json:
        print_json(
            {"point": point, "files": {key: str(path) for key, path in zip(disks, files, strict=True)}}
        )
    else:
        for path in files:
            out.print(f"{path}: point {point['sequence']} of {point['time']}", markup=False)


# -- which journal, which point ----------------------------------------------------------------------------


def _is_journal(folder: Path) -> bool:
    # Any of its parts, so that a journal whose journal.json is gone is still named as one that is damaged.
    return any((folder / name).exists() for name in ("journal.json", "base.json", "points"))


def _journals(folder: Path) -> list[Path]:
    if _is_journal(folder):
        return [folder]
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}", path=str(folder))
    found = [
        path
        for path in sorted(folder.iterdir())
        if durable.TEMPORARY_MARK not in path.name and path.is_dir() and _is_journal(path)
    ]
    if not found:
        raise NotFoundError(f"there is no journal in {folder}", hint="give an item's folder or a store")
    return found


def _one_journal(folder: Path) -> Path:
    found = _journals(folder)
    if len(found) > 1:
        raise InvalidInputError(
            f"{folder} holds {len(found)} journals",
            hint="give one of " + ", ".join(str(path) for path in found),
        )
    return found[0]


def _choose(journal: Journal, sequence: int | None, time: str | None) -> Sequence | None:
    if time is None:
        return None if sequence is None else Sequence(sequence)
    try:
        limit = datetime.fromisoformat(time)
    except ValueError as error:
        raise InvalidInputError(f"not a time: {time!r}", hint="such as 2026-11-23T05:00:00Z") from error
    if limit.tzinfo is None:
        limit = limit.replace(tzinfo=UTC)
    points = journal.points()
    fitting = [point for point in points if point.time <= limit]
    if not fitting:
        oldest = f"the oldest is of {format_time(points[0].time)}" if points else "there is no point"
        raise NotFoundError(f"no point is as old as {time}", hint=oldest)
    return max(fitting, key=lambda point: (point.time, point.sequence)).sequence


# -- ls ----------------------------------------------------------------------------------------------------


def _list_points(folder: Path, *, as_json: bool) -> None:
    from secondsite.journal import Journal

    journal = Journal.open(folder, writable=False)
    status = journal.status()
    rows = [_point_row(point) for point in journal.points()]
    if as_json:
        disks = {str(key): size for key, size in journal.disks.items()}
        print_json({**_item_row(folder, journal), "disks": disks, "damage": status.damage, "points": rows})
        return
    print_rows(
        rows,
        [
            ("SEQUENCE", lambda row: row["sequence"]),
            ("TIME", lambda row: row["time"]),
            ("CONSISTENCY", lambda row: row["consistency"]),
            ("KIND", lambda row: row["kind"]),
            ("EPOCH", lambda row: row["epoch"]),
            ("CHANGED", lambda row: human_bytes(row["changed"])),
            ("STORED", lambda row: human_bytes(row["stored"])),
        ],
        empty=f"{status.name}: no point yet, the initial replication has not ended",
    )
    if status.damage is not None:
        err.print(f"damaged: {status.damage['message']}", markup=False)


def _list_items(folder: Path, *, as_json: bool) -> None:
    from secondsite.journal import Journal

    rows = []
    for path in _journals(folder):
        try:
            rows.append(_item_row(path, Journal.open(path, writable=False)))
        except SecondSiteError as error:
            rows.append({"item": path.name, "name": None, "path": str(path), "damage": error.to_dict()})
    if as_json:
        print_json({"items": rows})
        return
    print_rows(
        rows,
        [
            ("ITEM", lambda row: row["item"]),
            ("NAME", lambda row: row["name"]),
            ("STATE", lambda row: "damaged" if row["damage"] else row["state"]),
            ("POINTS", lambda row: row.get("count")),
            ("LAST", lambda row: row["last"]["time"] if row.get("last") else None),
        ],
        empty="no journals",
    )


def _item_row(path: Path, journal: Journal) -> dict[str, Any]:
    status = journal.status()
    return {
        "item": status.item,
        "name": status.name,
        "path": str(path),
        "state": status.state,
        "epoch": status.epoch,
        "count": status.points,
        "last": None if status.last is None else _point_row(status.last),
        "damage": status.damage,
    }


def _point_row(point: PointInfo) -> dict[str, Any]:
    return {
        "sequence": point.sequence,
        "time": format_time(point.time),
        "consistency": point.consistency.value,
        "kind": point.kind.value,
        "epoch": point.epoch,
        "digest": point.digest,
        "changed": point.changed,
        "stored": point.stored,
    }


# -- verify and extract ------------------------------------------------------------------------------------

_FINDING_COLUMNS = [
    ("POINT", lambda row: row["point"]),
    ("DISK", lambda row: row["disk"]),
    ("OFFSET", lambda row: row["offset"]),
    ("WHAT", lambda row: row["what"]),
]


def _verify(path: Path, open_base: OpenBase, *, as_json: bool) -> dict[str, Any]:
    from secondsite.journal import verify_folder

    with _bar(as_json=as_json) as bar:
        findings = [finding.to_dict() for finding in verify_folder(path, open_base, _track(bar, path.name))]
    return {"path": str(path), "findings": findings}


def _to_qcow2(source: Path, target: Path) -> None:
    qemu_img = shutil.which("qemu-img")
    if qemu_img is None:
        raise UnavailableError("qemu-img is not installed", hint="install qemu-utils, or extract as raw")
    command = [qemu_img, "convert", "-f", "raw", "-O", "qcow2", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError(
            f"qemu-img failed: {done.stderr.strip()}", hint="free space, or extract as raw"
        )
    durable.fsync_file(target)


def _bar(*, as_json: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=err,
        disable=as_json or not err.is_terminal,
        transient=True,
    )


def _track(bar: Progress, name: str) -> Callable[[int, int], None]:
    task = bar.add_task(name, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _comparing(bar: Progress) -> Iterator[Callable[[int], None]]:
    task = bar.add_task("comparing logs", total=None)
    yield lambda done: bar.update(task, advance=done)


@contextmanager
def _bases(folder: Path, run_dir: Path | None) -> Iterator[OpenBase]:
    """Give the factory of bases.

    Images are served by a qemu-nbd of a running node (in `run_dir`, or found beside the journals), or by one of our
    own, in a folder of its own, which ends with the command.
    """
    used: set[Path] = set()
    own: list[Path] = []

    def open_base(spec: BaseSpec, writable: bool) -> Base:
        if spec.kind == "raw":
            from secondsite.journal import open_raw_base

            return open_raw_base(spec, writable)
        from secondsite.nbd.image import base_opener, is_served

        if run_dir is not None:
            return base_opener(run_dir)(spec, writable)
        # A node links its own folder of sockets beside its journals.
        linked = folder.absolute()
        for candidate in (linked.parent / "run", linked.parent.parent / "run"):
            if is_served(spec.path, candidate):
                return base_opener(candidate.resolve())(spec, writable)
        if not own:
            own.append(Path(tempfile.mkdtemp(prefix="secondsite-")))
        used.add(spec.path)
        return base_opener(own[0])(spec, writable)

    try:
        yield open_base
    finally:
        if own:
            from secondsite.nbd.image import stop_shared

            for path in used:
                stop_shared(path, own[0])
            shutil.rmtree(own[0], ignore_errors=True)
