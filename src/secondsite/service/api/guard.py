"""Who may call what, and the trail of who did.

Every route but the health check and the login carries exactly one `Need`: a test walks the routes and proves it, and another tries
each with each role against docs/reference/access.md. Contributors may do everything, Operators run failovers and tests, Readers look.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from secondsite.errors import ForbiddenError, UnauthenticatedError
from secondsite.service.context import Actor, Context
from secondsite.service.store import audit
from secondsite.service.usecases.accounts import identify
from secondsite.service.vocabulary import Role

RANK: Final = {Role.READER: 0, Role.OPERATOR: 1, Role.CONTRIBUTOR: 2}
READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
ACCEPTED: Final = 202
"""An answer with this status is the job that was begun."""
_ITEM = re.compile(r"/items/([^/]+)")
_bearer = HTTPBearer(
    auto_error=False, description="A token: `secondsite login`, or `secondsite vault create-token`"
)


async def context_of(request: Request) -> Context:
    """Return the context that the application was made with. Not in a thread of its own, as plain functions are called: it does nothing."""
    ctx: Context = request.app.state.ctx
    return ctx


Ctx = Annotated[Context, Depends(context_of)]


class Need:
    """The dependency that lets a role (and those above it) in."""

    def __init__(self, role: Role) -> None:
        self.role = role

    def __call__(
        self,
        request: Request,
        ctx: Ctx,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Actor:
        """Return who calls, or refuse."""
        if credentials is None:
            raise UnauthenticatedError(
                "this call needs a token", hint="send the header Authorization: Bearer <token>"
            )
        actor = identify(ctx, credentials.credentials)
        request.state.actor = actor
        if RANK[actor.role] < RANK[self.role]:
            raise ForbiddenError(
                f"the role {actor.role.value} may not do this", hint=f"it needs the role {self.role.value}"
            )
        return actor


reader = Need(Role.READER)
operator = Need(Role.OPERATOR)
contributor = Need(Role.CONTRIBUTOR)

Reader = Annotated[Actor, Depends(reader)]
Operator = Annotated[Actor, Depends(operator)]
Contributor = Annotated[Actor, Depends(contributor)]


def install_audit(app: FastAPI, ctx: Context) -> None:
    """Write one line for each request that may change something, also for refused ones."""

    async def audited(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.method in READING:
            return await call_next(request)
        status = 500
        job: Mapping[str, Any] = {}
        try:
            response = await call_next(request)
            status = response.status_code
            if status == ACCEPTED:
                response, job = await _accepted(response)
            return response
        finally:
            await run_in_threadpool(_note, ctx, request, status, job)

    app.middleware("http")(audited)


async def _accepted(response: Any) -> tuple[Response, Mapping[str, Any]]:
    """Read the job out of the answer that accepts it; return the answer again."""
    body = b"".join([piece async for piece in response.body_iterator])
    headers = dict(response.headers)
    try:
        job = json.loads(body)
    except ValueError:
        job = {}
    return Response(body, response.status_code, headers), job if isinstance(job, dict) else {}


def _note(ctx: Context, request: Request, status: int, job: Mapping[str, Any]) -> None:
    actor: Any = getattr(request.state, "actor", None)
    path, detail = request.url.path[:500], getattr(request.state, "detail", None)
    if actor is None and 400 <= status < 500:
        admitted, detail = ctx.flood.admit(ctx.clock(), detail)
        if not admitted:
            return
    named = _ITEM.search(path)
    line = audit.Line(
        time=ctx.clock(),
        actor="anonymous" if actor is None else actor.name,
        role=None if actor is None else actor.role.value,
        method=request.method,
        path=path,
        status=status,
        outcome="done" if status < 400 else "refused" if status < 500 else "failed",
        source=None if request.client is None else request.client.host,
        item=job.get("item") or (unquote(named[1]) if named else None),
        job_id=job.get("id"),
        detail=detail,
    )
    with ctx.store.transaction() as tx:
        audit.note(tx, line)
