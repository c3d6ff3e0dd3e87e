"""The service's folder: where its authority, its certificates, its database and its settings are.

<data>/settings.json       where the database is, written once by `init`
       ca/ca.pem, ca.key   the vault's authority: whoever has the key can be any node
       tls/                the service's own certificate, issued anew at each start
       secondsite.sqlite   the store, unless it is in PostgreSQL
       workflows.sqlite    the workflows' records, likewise
       service.json        the addresses of the service that runs
       standby.json        there while a standby waits for its turn
       lock                held by the service that runs
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from secondsite.durable import write_atomic
from secondsite.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError


@dataclass(frozen=True, slots=True)
class DataDir:
    """See the module's docstring."""

    path: Path

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.path / "settings.json"

    @property
    def ca_cert(self) -> Path:
        """The authority's certificate."""
        return self.path / "ca" / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The authority's key."""
        return self.path / "ca" / "ca.key"

    @property
    def tls(self) -> Path:
        """The folder of the service's own certificate."""
        return self.path / "tls"

    @property
    def running(self) -> Path:
        """Where the running service tells its addresses."""
        return self.path / "service.json"

    @property
    def waiting(self) -> Path:
        """There while a standby waits."""
        return self.path / "standby.json"

    @property
    def own_database(self) -> Path:
        """The SQLite file that is the store unless it is elsewhere."""
        return self.path / "secondsite.sqlite"

    @property
    def lock(self) -> Path:
        """The lock of the one service in this folder."""
        return self.path / "lock"

    def create(self, database_url: str | None) -> None:
        """Make the folder and write the settings; ConflictError if there are any."""
        if self.settings.exists():
            raise ConflictError(
                f"{self.path} holds a vault already", hint="start it, or choose another folder"
            )
        if database_url is not None:
            _checked(database_url)
        self.ca_cert.parent.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)

    def finish(self, database_url: str | None) -> None:
        """Write the settings: from now on the folder is a vault's."""
        write_atomic(self.settings, json.dumps({"version": 1, "database_url": database_url}).encode())

    def database(self, override: str | None = None) -> sa.URL:
        """Return where the database is."""
        url = override or self._read().get("database_url")
        return sa.make_url(f"sqlite:///{self.own_database}") if url is None else _checked(str(url))

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self.settings.read_text())
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{self.path} holds no vault", hint="initialise it first: secondsite service init"
            ) from error
        except ValueError as error:
            raise CorruptError(f"{self.settings} does not parse") from error
        if not isinstance(found, dict):
            raise CorruptError(f"{self.settings} does not parse")
        return found


def _checked(database_url: str) -> sa.URL:
    try:
        url = sa.make_url(database_url)
    except sa.exc.ArgumentError as error:
        raise InvalidInputError("the database URL does not parse") from error
    if url.get_backend_name() not in {"postgresql", "sqlite"}:
        raise InvalidInputError(
            f"{url.get_backend_name()} is not a supported database", hint="use PostgreSQL or SQLite"
        )
    return url
