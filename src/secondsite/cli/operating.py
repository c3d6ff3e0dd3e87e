"""Beginning an operation of an item and following its job: what every such command does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secondsite.cli.client import connect
from secondsite.cli.following import finish
from secondsite.cli.output import reporting

Item = Annotated[str, typer.Argument(help="The item's name or id.")]


def operate(item: str, operation: str, body: Mapping[str, Any], no_wait: bool, as_json: bool) -> None:
    """Ask for the operation with what of `body` was given, and follow its job to the end."""
    with reporting(as_json=as_json):
        api = connect()
        given = {key: value for key, value in body.items() if value is not None}
        job = api.post(f"/items/{item}/{operation}", given)
        finish(api, job, as_json=as_json, no_wait=no_wait)
