"""The commands of `secondsite` against the real application in this process: no socket, no second process.

A job runs when its progress is asked for the second time, in the thread that asks: so a command that follows a job sees
it wait first, and then end, in every run alike.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
from typer.testing import CliRunner

from secondsite.cli import app
from secondsite.cli.client import speaking_through
from secondsite.service.api.app import create_app
from secondsite.service.usecases import tokens
from secondsite.service.vocabulary import Role
from support.service_world import World

URL = "https://vault.test"


class InProcess(httpx.BaseTransport):
    """Answers requests with the service's own application."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._app = create_app(world.ctx)
        self._asked: set[str] = set()
        self.requests: list[tuple[str, str, Any]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        self.requests.append((request.method, request.url.path, json.loads(body) if body else None))
        folder, _, name = request.url.path.rpartition("/")
        if folder.endswith("/jobs"):
            self._perform(name)
        return asyncio.run(self._answer(request, body))

    def _perform(self, name: str) -> None:
        waiting = {job: job for job in self._world.started}
        if name in waiting and name in self._asked:
            self._world.started.remove(waiting[name])
            self._world.run(waiting[name])
        self._asked.add(name)

    async def _answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        asked = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        answer = await transport.handle_async_request(asked)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content, request=request)


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, parsed."""
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """Standard output and error with single blanks, for looking for words in tables."""
        return " ".join((self.out + self.err).split())


def call(
    transport: httpx.BaseTransport,
    *arguments: str,
    env: dict[str, str | None] | None = None,
    stdin: str | None = None,
) -> Said:
    """Run a command in this process."""
    with speaking_through(transport):
        done = CliRunner().invoke(app, list(arguments), env=env, input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


@dataclass
class Cli:
    """A person with a token and the command."""

    world: World
    transport: InProcess
    env: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, world: World, role: Role = Role.CONTRIBUTOR) -> Cli:
        """Return a command that shows a token of this role."""
        secret = tokens.create_token(world.ctx, role.value, role).secret
        found = cls(world, InProcess(world))
        found.env = {"SECONDSITE_URL": URL, "SECONDSITE_TOKEN": secret}
        return found

    def run(self, *arguments: str) -> Said:
        """Run a command, however it ends."""
        return call(self.transport, *arguments, env=self.env)

    def ok(self, *arguments: str) -> Said:
        """Run a command that must succeed."""
        said = self.run(*arguments)
        assert said.code == 0, said
        return said

    def json(self, *arguments: str) -> Any:
        """Run a command with --json that must succeed; return what it printed, parsed. Nothing else is printed."""
        said = self.ok(*arguments, "--json")
        assert said.err == ""
        return said.json

    def protected(self) -> None:
        """Protect web-1."""
        self.world.protected()
        self.world.started.clear()
