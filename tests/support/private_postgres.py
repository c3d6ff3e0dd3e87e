"""A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket, ended by its own process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg

from support.service_node import until


def binary(name: str) -> Path:
    """Return the newest installed program of PostgreSQL with this name."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    assert found, "PostgreSQL is not installed: apt-get install postgresql"
    return found[-1]


class PrivatePostgres:
    """One server. It refuses to run as root, so root starts it as the user postgres."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ss-pg-", dir="/tmp"))
        self.data = self.folder / "data"
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self.process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            "--auth=trust",
            "--no-sync",
            "--username=tests",
            "--encoding=UTF8",
            f"--pgdata={self.data}",
        )
        self.start()

    def start(self) -> None:
        """Start and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._as,
                    str(binary("postgres")),
                    *("-D", str(self.data), "-k", str(self.folder), "-c", "listen_addresses="),
                    *("-c", "fsync=off", "-c", "full_page_writes=off"),
                ],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        until(self._answers, "PostgreSQL")

    def stop(self) -> None:
        """Cut all connections and end the server; the data stays."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
            self.process = None

    def close(self) -> None:
        """End the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder)

    def new_database(self, like: str = "template1") -> str:
        """Return the URL of a fresh database: an empty one, or a copy of one to which nobody is connected."""
        name = f"t{uuid.uuid4().hex[:12]}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {like}".encode())
        return f"postgresql://tests@/{name}?host={self.folder}"

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self.folder), user="tests", dbname="postgres", autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(binary(program)), *arguments], capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 0, done.stderr
