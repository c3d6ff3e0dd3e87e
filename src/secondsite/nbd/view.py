"""The process that serves one point of a journal: `python -m secondsite.nbd.view`.

It needs the journal's folder and nothing else: no service, no database. Each disk of the point is an export named
by its key. When all sockets and pins are in place it writes one line of JSON to stdout, and serves until SIGTERM or
SIGINT. What it reads is pinned as long as it lives. Killed and started again with the same arguments, it
replaces the socket, and serves the same bytes.

Exit codes: 0 after a signal, 1 when the point could not be served (the error is a line of JSON on stderr),
2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Final

from secondsite.errors import SecondSiteError
from secondsite.journal.base import Base, BaseSpec, OpenBase, open_raw_base
from secondsite.journal.store import Store
from secondsite.journal.view import View, open_prepared
from secondsite.model.ids import Sequence
from secondsite.nbd.disk import ReadableDisk
from secondsite.nbd.server import NbdServer

PREPARED_WAIT_S: Final = 3.0
"""About what it takes to read 3,000 points and their logs here instead."""
_POLL_S: Final = 0.002
_PURPOSE: Final = "view"


def main(argv: Seq[str] | None = None) -> int:
    """Serve until a signal; return the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    ended = threading.Event()
    # Handlers, not a blocked mask: a mask would be inherited by a qemu-nbd that we start.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        _serve(arguments, ended)
    except SecondSiteError as error:
        print(json.dumps({"error": error.to_dict()}), file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


def _serve(arguments: argparse.Namespace, ended: threading.Event) -> None:
    with _open(arguments) as view:
        exports: dict[str, ReadableDisk] = dict(view.disks.items())
        with NbdServer(exports, arguments.socket, mode=arguments.mode):
            ready = {
                "ready": True,
                "pid": os.getpid(),
                "socket": str(arguments.socket),
                "sequence": view.sequence,
                "disks": {key: disk.size for key, disk in view.disks.items()},
            }
            print(json.dumps(ready), flush=True)  # noqa: T201
            ended.wait()


def _open(arguments: argparse.Namespace) -> View:
    """Open the point: with what a node prepared, or by ourselves."""
    open_base = _opener(arguments.run_dir or arguments.journal / "run")
    sequence = None if arguments.sequence is None else Sequence(arguments.sequence)
    if arguments.prepared is not None and not arguments.verify:
        store = Store.at(arguments.journal, open_base)
        _await(arguments.prepared)
        prepared = open_prepared(store, arguments.prepared, sequence, _PURPOSE)
        if prepared is not None:
            return prepared
    # Not loaded before: this has half of the product behind it, numpy too, and a machine waits for this process to start.
    from secondsite.journal import Journal

    with Journal.open(arguments.journal, writable=False, open_base=open_base) as journal:
        return journal.view(sequence, purpose=_PURPOSE, verify=arguments.verify)


def _opener(run_dir: Path) -> OpenBase:
    """What an image needs is imported only for one: a machine waits for this process to start."""

    def open_base(spec: BaseSpec, writable: bool) -> Base:
        if spec.kind == "raw":
            return open_raw_base(spec, writable)
        from secondsite.nbd.image import base_opener

        return base_opener(run_dir)(spec, writable)

    return open_base


def _await(path: Path) -> None:
    """Wait until the file is there; a node that died, or takes longer than we would, is not waited for."""
    deadline = time.monotonic() + PREPARED_WAIT_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m secondsite.nbd.view", description="Serve one recovery point as read-only NBD exports."
    )
    parser.add_argument("--journal", type=Path, required=True, help="the item's journal folder")
    parser.add_argument("--sequence", type=int, help="the point; the newest if not given")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to create or replace")
    parser.add_argument(
        "--mode", type=_mode, default=0o600, metavar="OCTAL", help="permissions of the socket (0600)"
    )
    parser.add_argument("--run-dir", type=Path, help="where this node's qemu-nbd sockets are (JOURNAL/run)")
    parser.add_argument(
        "--prepared", type=Path, metavar="FILE", help="what a node wrote to have this point open sooner"
    )
    parser.add_argument("--verify", action="store_true", help="compare what is read with its digests")
    return parser


def _mode(text: str) -> int:
    value = int(text, 8)
    if not 0 <= value <= 0o777:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
