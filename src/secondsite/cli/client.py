"""The commands' connection to the service: where it is, who we are, how errors come back.

Looked up in this order: the options --url, --token, --ca; the environment SECONDSITE_URL, SECONDSITE_TOKEN,
SECONDSITE_CA; the file that --config or SECONDSITE_CONFIG names; ~/.config/secondsite/cli.json. The file holds
{"url": ..., "token": ..., "ca": path}.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from secondsite.errors import InvalidInputError, RemoteError, UnauthenticatedError, UnavailableError

TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the service is and what we show it. `ca` is a file, or None for the system's authorities."""

    url: str
    token: str
    ca: Path | None


def find_connection(
    *, config: Path | None = None, url: str | None = None, token: str | None = None, ca: Path | None = None
) -> Connection:
    """Return the connection to use; InvalidInputError tells what is missing and how to give it."""
    path = config or _path(os.environ.get("SECONDSITE_CONFIG"))
    default = Path.home() / ".config" / "secondsite" / "cli.json"
    fields = _read(path) if path is not None else (_read(default) if default.exists() else {})
    url = url or os.environ.get("SECONDSITE_URL") or fields.get("url")
    token = token or os.environ.get("SECONDSITE_TOKEN") or fields.get("token")
    ca = ca or _path(os.environ.get("SECONDSITE_CA")) or _path(fields.get("ca"))
    if not url or not token:
        raise InvalidInputError(
            f"no {'service URL' if not url else 'token'} is known",
            hint="set SECONDSITE_CONFIG to a cli.json (secondsite lab up prints one), or SECONDSITE_URL and SECONDSITE_TOKEN",
        )
    return Connection(url.rstrip("/"), token, ca)


class ApiClient:
    """Calls under /api/v1. Raises RemoteError with the service's own code and hint."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        verify: ssl.SSLContext | bool = True
        if connection.ca is not None:
            try:
                verify = ssl.create_default_context(cafile=str(connection.ca))
            except (OSError, ssl.SSLError) as error:
                raise InvalidInputError(
                    f"the CA file {connection.ca} does not load: {error}", hint="take ca.pem of the vault"
                ) from error
        self._http = httpx.Client(
            base_url=f"{connection.url}/api/v1",
            headers={"Authorization": f"Bearer {connection.token}"},
            verify=verify,
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    def get(self, path: str, **params: Any) -> Any:
        """GET and return the JSON body."""
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """POST and return the JSON body."""
        return self._call("POST", path, json=body or {})

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """PUT and return the JSON body."""
        return self._call("PUT", path, json=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """PATCH and return the JSON body."""
        return self._call("PATCH", path, json=body)

    def delete(self, path: str) -> Any:
        """DELETE and return the JSON body."""
        return self._call("DELETE", path)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"{self._connection.url} does not answer: {error}",
                hint="is the service running, and is this its address and CA?",
            ) from error
        if response.is_success:
            return response.json() if response.content else {}
        try:
            fields = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            fields = None
        if not isinstance(fields, dict):
            raise UnavailableError(
                f"{self._connection.url} answered {response.status_code} without an error that we know"
            )
        if response.status_code == 401:
            raise UnauthenticatedError(str(fields.get("message")), hint=str(fields.get("hint", "")))
        raise RemoteError(fields)


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
