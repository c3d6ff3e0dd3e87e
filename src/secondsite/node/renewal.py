"""Renewal of the node's certificate, well before it ends: once a day the node looks, and asks when a third is left.

A new key each time. A failure is tried again the next day, and the service's silence is no failure of replication:
the certificate outlives a long absence. Key and certificate are two files, so the new pair is first written whole into a
folder beside them, and a crash amid the exchange is finished at the next start (`finish`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

import structlog

from secondsite import durable
from secondsite.errors import SecondSiteError
from secondsite.ship.failover import Caller
from secondsite.ship.identity import Credentials, make_key_and_csr

LOOK_S: Final = 86_400.0

log = structlog.get_logger(__name__)


def finish(credentials: Credentials) -> bool:
    """Put a renewed pair in place if there is one; return whether there was. Idempotent."""
    following = _following(credentials)
    if not following.cert_file.exists():  # written last: without it the pair is not whole
        return False
    Credentials.write(
        credentials.cert_file.parent,
        key=following.key_file.read_bytes(),
        certificate=following.cert_file.read_bytes(),
        ca=following.ca_file.read_bytes(),
    )
    durable.remove_tree(following.cert_file.parent)
    return True


def _following(credentials: Credentials) -> Credentials:
    folder = credentials.cert_file.parent / "next"
    return Credentials(
        folder / credentials.cert_file.name,
        folder / credentials.key_file.name,
        folder / credentials.ca_file.name,
    )


class Renewal:
    """Looks once a day. `renewed` is called after a new certificate was written: whoever holds a context reloads it."""

    def __init__(
        self,
        credentials: Credentials,
        client: Caller,
        renewed: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._credentials = credentials
        self._client = client
        self._renewed = renewed
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def start(self) -> None:
        """Begin; the first look is at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> bool:
        """Renew the certificate if it is due; return whether it was renewed. Raises what the service answers."""
        if not self._credentials.renewal_due(self._clock()):
            return False
        key, csr = make_key_and_csr(self._credentials.node)
        answer = self._client.post("/node/v1/renew", {"csr": csr.decode()})
        folder = _following(self._credentials).cert_file.parent
        durable.remove_tree(folder)
        ca = self._credentials.ca_file.read_bytes()
        Credentials.write(folder, key=key, certificate=str(answer["certificate"]).encode(), ca=ca)
        finish(self._credentials)
        self._client.reload()
        self._renewed()
        log.info("certificate renewed", until=self._credentials.not_after.isoformat())
        return True

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except SecondSiteError as error:
                log.warning("the certificate was not renewed", error=error.to_dict())
            if self._stop.wait(LOOK_S):
                return
