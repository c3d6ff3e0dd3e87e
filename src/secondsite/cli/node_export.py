"""`secondsite node export`: a copy of a machine's disks on a medium, for `item protect --seed` at the other site."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from secondsite.cli.output import Json, err, human_bytes, out, print_json, reporting


def export(
    vm: Annotated[str, typer.Argument(help="The machine's name or UUID in this host's hypervisor.")],
    output: Annotated[
        Path,
        typer.Option(help="A new or empty folder on the medium; its files are as sensitive as the disks."),
    ],
    exclude_disk: Annotated[
        list[str] | None,
        typer.Option(help="A disk to leave out, as 'item protect' will, such as vdb. May be repeated."),
    ] = None,
    state: Annotated[Path, typer.Option(help="The node's state folder.")] = Path("/var/lib/secondsite/node"),
    as_json: Json = False,
) -> None:
    """Copy a machine's disks, as of one moment, to a medium, while it runs or is off.

    Run it on the machine's host, before the machine is protected. Carry the medium to the target node's host, mount it
    there, and protect the machine with: secondsite item protect VM --seed FOLDER. Only what differs from the copy is
    shipped then, so what the machine writes meanwhile costs what it wrote. If it is interrupted, nothing is left.
    """
    with reporting(as_json=as_json):
        from secondsite.node.source.export import export_machine

        with _ended_by_signals(), _shown() as tell:
            done = export_machine(state, vm, output.absolute(), tell, exclude=exclude_disk or ())
        if as_json:
            print_json({**done.to_dict(), "folder": str(output.absolute())})
            return
        for key, disk in sorted(done.disks.items()):
            out.print(f"{key}  {disk.file}  {human_bytes(disk.size)}  BLAKE3 {disk.blake3}", markup=False)
        err.print(
            f"{done.name} as of {done.time} is in {output}; at the other site: "
            f"secondsite item protect {done.name} --seed FOLDER",
            markup=False,
        )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Take a closed terminal, or a kill, for Ctrl-C: what was begun on the machine must be ended. Once: that takes a while."""
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup makes it
    ]

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        err.print("interrupted: nothing is left of the export")
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    columns = (
        TextColumn("exporting"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("", total=None, detail="")

        def tell(done: int, total: int) -> None:
            bars.update(
                task,
                total=max(1, total),
                completed=done,
                detail=f"{human_bytes(done)} of {human_bytes(total)}",
            )

        yield tell
