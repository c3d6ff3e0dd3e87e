"""The node's part in Kerberos: a second listener, who its callers are, and tickets for dialling.

A node whose keytab or gssapi is missing must still take over an item on the worst day, so the trouble is told (log, report, `error`) and tried again; all else
goes on. What a principal stands for is the node's settings' word first, then that of its items' records (the service named it there).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from secondsite.errors import ConflictError, SecondSiteError
from secondsite.model.ids import NodeId
from secondsite.node.config import KerberosConfig
from secondsite.node.records import ItemStore, Peer, Role
from secondsite.ship.identity import Credentials
from secondsite.ship.kerberos import KerberosAcceptor, KerberosTrust
from secondsite.ship.listener import Listener, Receiver

RETRY_S: Final = 30.0

log = structlog.get_logger(__name__)


class TicketListener:
    """Listens for tickets as soon as it can. `error` says why it does not, None if it does."""

    def __init__(
        self,
        config: KerberosConfig,
        credentials: Credentials,
        receiver: Receiver,
        items: ItemStore,
        replay_cache: Path,
        is_removed: Callable[[NodeId], bool],
        tell: Callable[[str, str], None],
    ) -> None:
        """`tell` takes the code and the message of an event."""
        self._config = config
        self._tell = tell
        self._items = items
        self._acceptor = KerberosAcceptor(config.accepts, Path(config.keytab), self.node_of, replay_cache)
        self.listener = Listener(
            (config.listen_host, config.listen_port),
            credentials,
            receiver,
            negotiator=self._acceptor,
            is_removed=is_removed,
        )
        self.error: SecondSiteError | None = None
        self._listens = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tickets", daemon=True)

    def node_of(self, principal: str) -> NodeId | None:
        """Return the node that the principal stands for; None if nobody, or more than one, was named."""
        configured = self._config.peers.get(principal)
        if configured is not None:
            return NodeId(configured)
        named = set(self._named(principal))
        return named.pop() if len(named) == 1 else None

    def _named(self, principal: str) -> Iterable[NodeId]:
        for record in self._items.all():
            if record.role is Role.TARGET and record.peer is not None and record.peer.principal == principal:
                yield record.peer.node

    @property
    def address(self) -> str:
        """Where others reach it, "host:port"; "" while it does not listen."""
        host = self._config.advertise_host or self._config.listen_host
        return f"{host}:{self.listener.address[1]}" if self.error is None and self._listens else ""

    def start(self) -> None:
        """Listen, or say why not and try again later."""
        self._try()
        if self.error is not None:
            self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._listens:
            self.listener.stop()

    def reload(self) -> None:
        """New connections show the new certificate, and are bound to it."""
        self.listener.reload()

    def _try(self) -> None:
        try:
            self._acceptor.check()
            self.listener.start()
        except SecondSiteError as error:
            if self.error is None or self.error.message != error.message:
                log.error("no tickets are taken", error=error.to_dict())  # noqa: TRY400 - no trace needed
                self._tell("no-tickets", f"no tickets are taken: {error.message}")
            self.error = error
            return
        self.error = None
        self._listens = True
        log.info("tickets are taken", service=self._config.accepts, port=self.listener.address[1])

    def _run(self) -> None:
        while self.error is not None and not self._stop.wait(RETRY_S):
            self._try()


def trust_for(
    peer: Peer, credentials: Credentials, config: KerberosConfig | None, run_folder: Path
) -> Credentials | KerberosTrust:
    """Return what to show to this peer: our certificate, or a ticket if its service was named."""
    if not peer.service:
        return credentials
    if config is None:
        raise ConflictError(
            f"{peer.service} takes tickets, and this node has no Kerberos settings",
            hint="set them: secondsite node kerberos --principal NAME@REALM --keytab FILE",
            service=peer.service,
        )
    ccache = run_folder / "tickets"
    return KerberosTrust(credentials.ca_file, config.principal, Path(config.keytab), peer.service, ccache)


def telling(
    make: Callable[[bool], Mapping[str, Any]], config: KerberosConfig, tickets: TicketListener | None
) -> Callable[[bool], Mapping[str, Any]]:
    """Return `make`, a report's maker, with what this node offers by Kerberos in the inventory."""

    def made(with_inventory: bool) -> Mapping[str, Any]:
        body = make(with_inventory)
        inventory = body.get("inventory")
        if not isinstance(inventory, Mapping):
            return body
        offered = {
            "principal": config.principal,
            "service": "" if tickets is None else config.accepts,
            "address": "" if tickets is None else tickets.address,
            "error": None if tickets is None or tickets.error is None else tickets.error.to_dict(),
        }
        return {**body, "inventory": {**inventory, "kerberos": offered}}

    return made
