"""The nodes' face: enrolment, commands, progress, results, reports. See "The nodes' face" in the architecture page.

Promises:

- Who calls is what the TLS session's certificate says, never what the body says. A node sees and answers its own
  commands only; a removed node is refused on its next call.
- A command is handed out again as long as it has no result, was not given up and the node does not say that it runs; a new one wakes a
  waiting poll at once, one of another process within a second.
- The first result of a command wins; sending it again is harmless. The result of a command that was given up is
  accepted, told as an event, and changes nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Final

from secondsite.errors import InvalidInputError, UnauthenticatedError
from secondsite.model.ids import NodeId
from secondsite.service.context import Context
from secondsite.service.store import commands, nodes
from secondsite.service.store.records import Command
from secondsite.service.usecases import confirming, enrolment, reports
from secondsite.ship.http import Request, Router, add_ca_route

POLL_MAX_S: Final = 20.0
RECHECK_S: Final = 1.0
"""How long another process's command may go unnoticed."""


class NodesFace:
    """Handlers of the nodes' calls. `service` is what an enrolled node is told about the service."""

    def __init__(self, ctx: Context, service: Mapping[str, Any]) -> None:
        self._ctx = ctx
        self._service = service
        self._closing = False

    def router(self) -> Router:
        """Return the application that the HTTPS server serves."""
        router = Router()
        add_ca_route(router, self._ctx.authority.pem)
        router.add("POST", "/node/v1/enrol", self._enrol, body_max=64 << 10, peer_required=False)
        router.add("POST", "/node/v1/renew", self._renew, body_max=64 << 10)
        router.add("POST", "/node/v1/poll", self._poll, body_max=1 << 20)
        router.add("POST", "/node/v1/progress", self._progress, body_max=1 << 20)
        router.add("POST", "/node/v1/result", self._result)
        router.add("POST", "/node/v1/report", self._report)
        router.add("GET", "/node/v1/standing", self._standing)
        return router

    def close(self) -> None:
        """Send waiting polls home."""
        self._closing = True
        self._ctx.store.calls.ring()

    def _enrol(self, request: Request) -> Mapping[str, Any]:
        body = request.json()
        enrolled = enrolment.enrol(
            self._ctx,
            key=_text(body, "key"),
            csr=_text(body, "csr").encode(),
            name=_text(body, "name"),
            roles=_texts(body, "roles"),
            data_address=_text(body, "data_address"),
            storage=body.get("storage"),
            version=str(body.get("version", "")),
        )
        return {
            "node": enrolled.node,
            "site": enrolled.site.id,
            "site_name": enrolled.site.name,
            "certificate": enrolled.certificate.decode(),
            "ca": self._ctx.authority.pem.decode(),
            "service": dict(self._service),
        }

    def _renew(self, request: Request) -> Mapping[str, Any]:
        node = self._caller(request)
        certificate = enrolment.renew(self._ctx, node, _text(request.json(), "csr").encode())
        return {"certificate": certificate.decode(), "ca": self._ctx.authority.pem.decode()}

    def _poll(self, request: Request) -> Mapping[str, Any]:
        node = self._caller(request)
        body = request.json()
        wait_s = body.get("wait_s", 0)
        if not isinstance(wait_s, int | float) or isinstance(wait_s, bool):
            raise InvalidInputError("wait_s is not a number")
        running = frozenset(_texts(body, "running"))
        reports.sign_of_life(self._ctx, node)
        mark = body.get("removed")
        deadline = time.monotonic() + min(max(wait_s, 0.0), POLL_MAX_S)
        bell = self._ctx.store.calls
        while True:
            seen = bell.count
            found = self._take(node, running)
            removed = self._removed(mark)
            left = deadline - time.monotonic()
            if found or removed or left <= 0 or self._closing:
                return {"commands": [_wire(command) for command in found], **removed}
            bell.wait(seen, min(left, RECHECK_S))

    def _removed(self, mark: object) -> dict[str, Any]:
        """Return the removed nodes for a node whose last list, by its mark, was another one."""
        if not isinstance(mark, str):
            return {}
        with self._ctx.store.reading() as tx:
            removed = nodes.removed(tx)
        now = hashlib.sha256("\n".join(removed).encode()).hexdigest()[:32]
        return {} if now == mark else {"removed": {"nodes": removed, "mark": now}}

    def _take(self, node: NodeId, running: frozenset[str]) -> list[Command]:
        with self._ctx.store.reading() as tx:
            found = commands.deliverable(tx, node, running)
        if found:
            with self._ctx.store.transaction() as tx:
                # Again, under the write lock: one of them may have been withdrawn or answered meanwhile.
                found = commands.deliverable(tx, node, running, lock=True)
                commands.mark_delivered(tx, [command.id for command in found], self._ctx.clock())
        return found

    def _progress(self, request: Request) -> Mapping[str, Any]:
        node = self._caller(request)
        body = request.json()
        return {"cancelled": reports.take_progress(self._ctx, node, _text(body, "command"), body)}

    def _result(self, request: Request) -> Mapping[str, Any]:
        node = self._caller(request)
        body = request.json()
        reports.take_result(
            self._ctx,
            node,
            _text(body, "command"),
            result=_object(body, "result"),
            error=_object(body, "error"),
        )
        return {}

    def _report(self, request: Request) -> Mapping[str, Any]:
        reports.take_report(self._ctx, self._caller(request), request.json())
        return {}

    def _standing(self, request: Request) -> Mapping[str, Any]:
        node = self._caller(request)
        reports.sign_of_life(self._ctx, node)
        return confirming.standing_of(self._ctx, node)

    def _caller(self, request: Request) -> NodeId:
        node = request.known_peer
        with self._ctx.store.reading() as tx:
            standing = nodes.standing(tx, node)
        if standing is None or standing[0]:
            raise UnauthenticatedError(
                "this node is not enrolled here, or was removed", hint="enrol it again", node=node
            )
        return node


def _wire(command: Command) -> dict[str, Any]:
    return {
        "id": command.id,
        "kind": command.kind,
        "item": command.item_id,
        "epoch": command.epoch,
        "args": command.args,
    }


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidInputError(f"{key} is missing or no text", field=key)
    return value


def _texts(body: Mapping[str, Any], key: str) -> list[str]:
    value = body.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidInputError(f"{key} is not a list of texts", field=key)
    return value


def _object(body: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = body.get(key)
    if value is not None and not isinstance(value, dict):
        raise InvalidInputError(f"{key} is not an object", field=key)
    return value
