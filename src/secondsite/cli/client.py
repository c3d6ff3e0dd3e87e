"""Where the service is and who we are, for the commands.

Looked up in this order: the environment SECONDSITE_URL, SECONDSITE_TOKEN, SECONDSITE_CA; the file that --config or
SECONDSITE_CONFIG names; ~/.config/secondsite/cli.json. The file holds {"url": ..., "token": ..., "ca": path}. Where a standby
service exists, "url" is a list of addresses (SECONDSITE_URL: separated by blanks); they are tried in turn.

The HTTP client is imported when one is made: a node and `secondsite journal` work without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secondsite.errors import InvalidInputError

if TYPE_CHECKING:
    import httpx

    from secondsite.api_client import ApiClient, Connection

_chosen: Path | None = None
_transport: httpx.BaseTransport | None = None


def choose_config(path: Path | None) -> None:
    """Remember what --config named, for the commands of this process."""
    global _chosen  # noqa: PLW0603 - set once, by the root command
    _chosen = path


@contextmanager
def speaking_through(transport: httpx.BaseTransport) -> Iterator[None]:
    """Let this process's commands use a transport in place of the network: a service in this process, or a recording."""
    global _transport  # noqa: PLW0603 - the commands are called by typer, which hands nothing through
    before, _transport = _transport, transport
    try:
        yield
    finally:
        _transport = before


def connect() -> ApiClient:
    """Return a client for the configured service."""
    from secondsite.api_client import ApiClient

    return ApiClient(find_connection(config=_chosen), transport=_transport)


def find_connection(*, config: Path | None = None) -> Connection:
    """Return the connection to use; InvalidInputError tells what is missing and how to give it."""
    from secondsite.api_client import Connection

    path = config or _path(os.environ.get("SECONDSITE_CONFIG"))
    default = Path.home() / ".config" / "secondsite" / "cli.json"
    fields = _read(path) if path is not None else (_read(default) if default.exists() else {})
    urls = _urls(os.environ.get("SECONDSITE_URL") or fields.get("url"))
    token = os.environ.get("SECONDSITE_TOKEN") or fields.get("token")
    ca = _path(os.environ.get("SECONDSITE_CA")) or _path(fields.get("ca"))
    if not urls or not token:
        raise InvalidInputError(
            f"no {'service URL' if not urls else 'token'} is known",
            hint="give --config or set SECONDSITE_CONFIG (secondsite lab up writes such a file), "
            "or set SECONDSITE_URL and SECONDSITE_TOKEN",
        )
    return Connection(urls[0], str(token), ca, tuple(urls[1:]))


def _urls(given: object) -> list[str]:
    found = given if isinstance(given, list) else str(given or "").split()
    return [str(url).rstrip("/") for url in found]


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} does not read: {error}", hint="expected url, token, ca") from error
    if not isinstance(fields, dict):
        raise InvalidInputError(f"{path} holds no object", hint="expected url, token, ca")
    return fields


def _path(text: object) -> Path | None:
    return Path(str(text)) if text else None
