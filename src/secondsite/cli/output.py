"""What commands print: tables for people, JSON for programs, errors with hints. And the exit codes.

Results go to standard output, progress and errors to standard error, so `--json` can always be piped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secondsite.errors import SecondSiteError, UnsupportedError

EXIT_FAILED: Final = 1
EXIT_CODES: Final[Mapping[str, int]] = {
    "invalid_input": 2,
    "unsupported": 2,
    "operation_refused": 3,
    "wrong_role": 3,
    "conflict": 3,
    "stale_epoch": 3,
    "not_found": 4,
    "unauthenticated": 5,
    "forbidden": 5,
    "locked_out": 5,
    "unavailable": 6,
    "timeout": 6,
}
"""Exit codes by error code; every other failure is EXIT_FAILED. 0 is success, and only that."""

_EXTRAS: Final[Mapping[str, str]] = {
    "httpx": "cli",
    **dict.fromkeys(("cheroot", "cryptography", "structlog", "stamina"), "node"),
    **dict.fromkeys(("fastapi", "uvicorn", "sqlalchemy", "alembic", "psycopg", "dbos"), "service"),
}
_DISTRIBUTION: Final[Mapping[str, str]] = {"libvirt": "python3-libvirt", "nbd": "python3-libnbd"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]

PIPE_WIDTH: Final = 10_000

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

Column = tuple[str, Callable[[Mapping[str, Any]], Any]]


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()  # a daemon's first line is read while it runs


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, empty: str) -> None:
    """Print rows as a table, or the text `empty` to standard error."""
    if not rows:
        err.print(escape(empty))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value(row))) for _, value in columns))
    _print_table(table)


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print one thing as lines "name  value"."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), escape(_cell(value)))
    _print_table(table)


def _print_table(table: Table) -> None:
    # A name or an id that is cut off can't be used: a terminal folds it, and a pipe gets lines as long as they are.
    (out if out.is_terminal else Console(width=PIPE_WIDTH, highlight=False)).print(table)


def human_bytes(count: float | None) -> str:
    """Return a byte count with a binary unit: "1.5 MiB"."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


@contextmanager
def reporting(*, as_json: bool) -> Iterator[None]:
    """Turn our errors into a message (or JSON) on standard error and the exit code that belongs to them.

    A command imports what only it needs in here, so that a part that is not installed is an error with a hint.
    """
    try:
        yield
    except SecondSiteError as error:
        fail(error, as_json=as_json)
    except ModuleNotFoundError as error:
        fail(_not_installed(error), as_json=as_json)
    except KeyboardInterrupt:
        err.print("interrupted; what runs on the service goes on")
        raise typer.Exit(130) from None


def fail(error: SecondSiteError, *, as_json: bool) -> NoReturn:
    """Print the error and leave."""
    if as_json:
        sys.stderr.write(json.dumps({"error": error.to_dict()}, indent=2, default=str) + "\n")
    else:
        err.print(f"[bold red]error[/] \\[{error.code}]: {escape(error.message)}")
        if error.hint:
            err.print(f"  [bold]hint[/]: {escape(error.hint)}")
    raise typer.Exit(EXIT_CODES.get(error.code, EXIT_FAILED)) from error


def _not_installed(error: ModuleNotFoundError) -> SecondSiteError:
    module = (error.name or "").partition(".")[0]
    if module in _EXTRAS:
        hint = f"pip install 'secondsite[{_EXTRAS[module]}]'"
    elif module in _DISTRIBUTION:
        hint = f"apt-get install {_DISTRIBUTION[module]}, and make the virtual environment with --system-site-packages"
    else:
        raise error
    return UnsupportedError(
        f"this command needs the Python module {module}, which is not installed", hint=hint
    )


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set):
        return ", ".join(str(part) for part in value) or "-"
    return str(value)
