"""A client of the service's people's face: REST under /api/v1, a bearer token, the vault's own CA.

Raises RemoteError with the service's own code and hint; UnavailableError when it does not answer.

The service may be at several addresses (a standby takes over at its own). A call goes to the one that answered last; what reads is
asked for at the next address if that one fails (and once more at the same one if it hung up), what changes only if it surely was not sent.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from secondsite.errors import InvalidInputError, RemoteError, UnauthenticatedError, UnavailableError

TIMEOUT_S: Final = 60.0
KEEPALIVE_S: Final = 2.0
"""How long an unused connection is kept: less than the service keeps it (5 s), or both could decide at the same moment."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the service is and what we show it. `ca` is a file, or None for the system's authorities.

    `others` are further addresses, where a standby answers once it has taken over.
    """

    url: str
    token: str
    ca: Path | None
    others: tuple[str, ...] = ()


class ApiClient:
    """Calls under /api/v1. Raises RemoteError with the service's own code and hint."""

    def __init__(self, connection: Connection, *, transport: httpx.BaseTransport | None = None) -> None:
        """`transport` replaces the network: an application in this process, or a recording."""
        self._connection = connection
        verify: ssl.SSLContext | bool = True
        if connection.ca is not None:
            try:
                verify = ssl.create_default_context(cafile=str(connection.ca))
            except (OSError, ssl.SSLError) as error:
                raise InvalidInputError(
                    f"the CA file {connection.ca} does not load: {error}", hint="take ca.pem of the vault"
                ) from error
        self._bases = [f"{url}/api/v1" for url in (connection.url, *connection.others)]
        self._current = 0
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {connection.token}"} if connection.token else {},
            verify=verify,
            timeout=TIMEOUT_S,
            trust_env=False,
            transport=transport,
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
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
        response = self._ask(method, path, **kwargs)
        if response.is_success:
            return response.json() if response.content else {}
        try:
            fields = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            fields = None
        if not isinstance(fields, dict):
            raise UnavailableError(
                f"{response.request.url} answered {response.status_code} without an error that we know"
            )
        if response.status_code == 401:
            raise UnauthenticatedError(str(fields.get("message")), hint=str(fields.get("hint", "")))
        raise RemoteError(fields)

    def _ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        unsent = (httpx.ConnectError, httpx.ConnectTimeout)
        hung_up = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
        again = method == "GET"
        left = len(self._bases)
        while True:
            try:
                return self._http.request(method, f"{self._bases[self._current]}{path}", **kwargs)
            except httpx.HTTPError as error:
                if again and isinstance(error, hung_up):
                    again = (
                        False  # a kept connection that the service closed as we took it up: a new one tells
                    )
                    continue
                left -= 1
                asked, self._current = self._current, (self._current + 1) % len(self._bases)
                if left and (method == "GET" or isinstance(error, unsent)):
                    continue
                raise UnavailableError(
                    f"{self._bases[asked].removesuffix('/api/v1')} does not answer: {error}",
                    hint="is the service running, and is this its address and CA?",
                ) from error
