"""Who may call what, and the trail of who did.

Every route but the health check carries exactly one `needs(...)`: a test walks the routes and proves it. Contributors
may do everything, Operators run failovers and tests, Readers look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from secondsite.errors import ForbiddenError, UnauthenticatedError
from secondsite.service.context import Actor, Context
from secondsite.service.store import access
from secondsite.service.usecases.tokens import authenticate
from secondsite.service.vocabulary import Role

RANK: Final = {Role.READER: 0, Role.OPERATOR: 1, Role.CONTRIBUTOR: 2}
READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_bearer = HTTPBearer(auto_error=False, description="A token: `secondsite token create`")


def context_of(request: Request) -> Context:
    """Return the context that the application was made with."""
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
        actor = authenticate(ctx, credentials.credentials)
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
        try:
            response = await call_next(request)
            status = response.status_code
            return response
        finally:
            await run_in_threadpool(_note, ctx, request, status)

    app.middleware("http")(audited)


def _note(ctx: Context, request: Request, status: int) -> None:
    actor: Any = getattr(request.state, "actor", None)
    with ctx.store.transaction() as tx:
        access.note(
            tx,
            time=ctx.clock(),
            actor="anonymous" if actor is None else actor.name,
            role=None if actor is None else actor.role.value,
            method=request.method,
            path=request.url.path[:500],
            status=status,
            outcome="done" if status < 400 else "refused" if status < 500 else "failed",
        )
