"""Writes docs/reference/access.md: every route, the role that it needs, what it does. From the routes themselves.

`python -m secondsite.service.api.access_page > docs/reference/access.md`; a test compares the page with the routes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute

from secondsite.service.api.app import PREFIX, ROUTERS
from secondsite.service.api.guard import Need
from secondsite.service.vocabulary import Role

HEAD = """# Who may call what

Generated: `python -m secondsite.service.api.access_page > docs/reference/access.md`. A test tries every route with every role against
this page.

A higher role may do what a lower one may: Contributor (sets up, protects, manages accounts), Operator (failovers, tests, jobs),
Reader (looks). *none*: needs no token. *Reader* beside a route that changes something: it changes only what is one's own.
All paths begin with `/api/v1`. A token is sent as `Authorization: Bearer ...`; it comes from `secondsite login` (an account's session, eight hours) or
from `secondsite vault create-token` (a program's).

| method | path | needs | what it does |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Access:
    """A route and the role that it needs; None: no token."""

    method: str
    path: str
    role: Role | None
    summary: str


def every_access() -> list[Access]:
    """Return all routes, by path and method."""
    found = [
        Access(method, prefix + route.path, _role(route), _summary(route))
        for router in ROUTERS
        for prefix, route in _routes(router.routes, "")
        for method in sorted(route.methods or ())
    ]
    return sorted(found, key=lambda access: (access.path, access.method))


def page() -> str:
    """Return the page."""
    rows = [
        f"| {access.method} | `{access.path}` | {'*none*' if access.role is None else access.role.value} | {access.summary} |"
        for access in every_access()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _routes(routes: Any, prefix: str) -> Iterator[tuple[str, APIRoute]]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield prefix, route
        elif hasattr(route, "original_router"):  # a router within a router
            yield from _routes(route.original_router.routes, prefix + route.include_context.prefix)
        else:
            raise TypeError(f"a route of an unknown kind: {route!r}")


def _role(route: APIRoute) -> Role | None:
    needs = list(_needs(route.dependant))
    assert len(needs) <= 1, f"{PREFIX}{route.path} names its role more than once"
    return needs[0].role if needs else None


def _needs(dependant: Any) -> Iterator[Need]:
    for part in dependant.dependencies:
        if isinstance(part.call, Need):
            yield part.call
        yield from _needs(part)


def _summary(route: APIRoute) -> str:
    text = " ".join((route.endpoint.__doc__ or "").split("\n\n")[0].split())
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
