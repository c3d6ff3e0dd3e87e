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


def settings_file() -> Path:
    """Where this person's settings are, or will be."""
    chosen = _chosen or _path(os.environ.get("SECONDSITE_CONFIG"))
    return chosen or Path.home() / ".config" / "secondsite" / "cli.json"


def connect_without_token(urls: list[str], ca: Path | None) -> tuple[ApiClient, dict[str, Any]]:
    """Return a client for a login, and the settings that it goes by; what is not given is looked up as always."""
    from secondsite.api_client import ApiClient, Connection

    path = settings_file()
    fields = _read(path) if path.exists() else {}
    urls = urls or _urls(os.environ.get("SECONDSITE_URL") or fields.get("url"))
    ca = ca or _path(os.environ.get("SECONDSITE_CA")) or _path(fields.get("ca"))
    if not urls:
        raise InvalidInputError(
            "no service URL is known", hint="give --url, and --ca with the vault's ca.pem"
        )
    settings = {"url": urls if len(urls) > 1 else urls[0], "ca": None if ca is None else str(ca.absolute())}
    return ApiClient(Connection(urls[0], "", ca, tuple(urls[1:])), transport=_transport), settings


def keep_settings(settings: dict[str, Any]) -> Path:
    """Write the settings where later commands find them, for this person's eyes only."""
    from secondsite.durable import write_atomic

    path = settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(settings, indent=1).encode(), mode=0o600)
    return path


def forget_token() -> bool:
    """Take the token out of the settings; False if there was none."""
    path = settings_file()
    fields = _read(path) if path.exists() else {}
    if fields.pop("token", None) is None:
        return False
    keep_settings(fields)
    return True


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
            "or set SECONDSITE_URL and SECONDSITE_TOKEN, or log in: secondsite login",
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
