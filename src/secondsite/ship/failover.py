"""One caller for a service that may be at several addresses: the active one answers, a standby does not listen.

Promises:

- A call goes to the address that answered last. If nobody answers there, the others are tried at once, each once, and
  the first that answers is kept for all later calls. Only if nobody answers is the call an UnavailableError.
- Whoever answers has proved that it is the service: each address is checked for the same node id under the same authority.
- A call may reach two services one after the other (the first died before it answered), as every call of the nodes' protocol may be
  repeated. An answer, also a refusal, is final: it is never asked for again elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from secondsite.errors import InvalidInputError, RemoteError, UnavailableError
from secondsite.ship.client import Endpoint, JsonClient, Trust


class Caller(Protocol):
    """What talks to the service: a JsonClient for one address, a ServiceClient for several."""

    def post(
        self, path: str, document: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """POST a JSON object and return the answer's."""
        ...

    def get(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """GET a JSON object."""
        ...

    def reload(self, trust: Trust | None = None) -> None:
        """Use renewed credentials for new connections."""
        ...

    def close(self) -> None:
        """Close the idle connections."""
        ...


class ServiceClient:
    """See the module's docstring. Thread-safe."""

    def __init__(self, endpoints: Sequence[Endpoint], trust: Trust, *, timeout_s: float = 30.0) -> None:
        if not endpoints:
            raise InvalidInputError("no address of the service is known")
        self._clients = [JsonClient(endpoint, trust, timeout_s=timeout_s) for endpoint in endpoints]
        self._current = 0
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> Endpoint:
        """The address that answered last."""
        with self._lock:
            return self._clients[self._current].endpoint

    def post(
        self, path: str, document: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """See `Caller`."""
        return self._first(lambda client: client.post(path, document, timeout_s=timeout_s))

    def get(self, path: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """See `Caller`."""
        return self._first(lambda client: client.get(path, timeout_s=timeout_s))

    def reload(self, trust: Trust | None = None) -> None:
        """See `Caller`."""
        for client in self._clients:
            client.reload(trust)

    def close(self) -> None:
        """See `Caller`."""
        for client in self._clients:
            client.close()

    def _first(self, call: Any) -> dict[str, Any]:
        with self._lock:
            first = self._current
        last: UnavailableError | None = None
        for step in range(len(self._clients)):
            number = (first + step) % len(self._clients)
            try:
                answer: dict[str, Any] = call(self._clients[number])
            except RemoteError:
                self._keep(number)
                raise
            except UnavailableError as error:
                last = error
            else:
                self._keep(number)
                return answer
        assert last is not None
        raise last

    def _keep(self, number: int) -> None:
        with self._lock:
            self._current = number
