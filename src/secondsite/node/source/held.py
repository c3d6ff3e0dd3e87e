"""The operator's way out on the host: an order to start a machine that is held after a boot.

It works without the service, the network and the target: the order is a file in the item's folder, which the running
daemon takes. Whoever gives it must repeat a sentence, and the order is for the record's epoch only.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

from secondsite import durable
from secondsite.errors import ConflictError, InvalidInputError, NotFoundError, TimeoutExceededError
from secondsite.model.ids import Epoch
from secondsite.node.records import ItemRecord, Role, record_files

START_ORDER: Final = "start-held"


def sentence_for(record: ItemRecord) -> str:
    """Return what an operator has to repeat."""
    return f"I checked that {record.name} does not run at the other site"


def find_record(items: Path, wanted: str) -> tuple[Path, ItemRecord]:
    """Return the folder and the record of the item with this id or name.

    Raises:
        NotFoundError: this node knows no such item.
        ConflictError: several have that name.
    """
    found = []
    for path in record_files(items):
        record = ItemRecord.from_json(path.read_text(errors="replace"))
        if wanted in {record.item, record.name}:
            found.append((path.parent, record))
    if not found:
        raise NotFoundError(f"this node knows no item {wanted}", hint=f"see the folders in {items}")
    if len(found) > 1:
        raise ConflictError(f"several items are called {wanted}", hint="give the item's id")
    return found[0]


def order_start(items: Path, wanted: str, sentence: str) -> tuple[Path, ItemRecord]:
    """Give the order; return the item's folder and its record as it was.

    Raises:
        ConflictError: the item is not held.
        InvalidInputError: not the sentence.
    """
    folder, record = find_record(items, wanted)
    if record.held is None:
        raise ConflictError(f"{record.name} is not held", hint="nothing keeps this node from running it")
    if sentence != sentence_for(record):
        raise InvalidInputError(
            f"{record.name} is held: {record.held.reason}",
            hint=f"look at the other site first; then add --confirm '{sentence_for(record)}'",
        )
    durable.write_atomic(folder / START_ORDER, json.dumps({"epoch": record.epoch}).encode())
    return folder, record


def take_order(path: Path, epoch: Epoch) -> bool:
    """Return whether there is an order for this epoch. It is used up."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        document = None
    path.unlink(missing_ok=True)
    return isinstance(document, dict) and document.get("epoch") == epoch


def wait_for_start(folder: Path, timeout_s: float) -> None:
    """Wait until the daemon has followed the order.

    Raises:
        TimeoutExceededError: it has not; the order stands.
        ConflictError: it did not run the machine, because the other side turned out to.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        record = ItemRecord.from_json((folder / "record.json").read_text(errors="replace"))
        if record.held is None:
            if record.role in (Role.SOURCE, Role.ACTIVE):
                return
            raise ConflictError(
                f"{record.name} stepped down: it is {record.role.value} here now",
                hint="the other side has answered meanwhile, and runs it",
            )
        if time.monotonic() >= deadline:
            raise TimeoutExceededError(
                f"{record.name} is still held: {record.held.reason}",
                hint="the order stands; does the daemon run? its log says what it does",
            )
        time.sleep(0.1)
