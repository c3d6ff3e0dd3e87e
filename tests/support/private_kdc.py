"""A Kerberos KDC of the tests' own: in a temporary folder, on 127.0.0.1, ended by its own process id.

Two realms are served by one process. VAULT.TEST is ours; FOREIGN.TEST is somebody else's. VAULT.TEST accepts FOREIGN.TEST's users
(a cross-realm key), as companies do, so a foreign ticket that really is valid can be tried, too.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.service_node import until

REALM = "VAULT.TEST"
FOREIGN = "FOREIGN.TEST"
CLOCK_SKEW_S = 2
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class PrivateKdc:
    """One KDC process. `environment` is what a client process needs; `using` sets it in this one."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ss-kdc-", dir="/tmp"))
        self.process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._keytabs: dict[str, Path] = {}
        self.config = self.folder / "krb5.conf"
        self._write_config()
        try:
            for realm in (REALM, FOREIGN):
                self._run("kdb5_util", "create", "-s", "-r", realm, "-P", secrets.token_hex(8))
            shared = secrets.token_hex(16)
            for realm in (REALM, FOREIGN):
                self._admin(realm, f"addprinc -pw {shared} krbtgt/{REALM}@{FOREIGN}")
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make a process use this KDC and nothing of the machine's."""
        return {
            "KRB5_CONFIG": str(self.config),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
            "KRB5CCNAME": f"FILE:{self.folder}/nobody",
            "KRB5_KTNAME": f"FILE:{self.folder}/none",
            "KRB5_CLIENT_KTNAME": f"FILE:{self.folder}/none",
            "KRB5RCACHENAME": "none:",  # ours must not depend on the machine's replay cache
        }

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["krb5kdc", "-n", "-r", REALM, "-r", FOREIGN],
                stdin=subprocess.DEVNULL,
                stdout=log,  # else it holds the test run's pipe for as long as it lives
                stderr=log,
                env={**os.environ, **self.environment, "PATH": _PATH},
                start_new_session=True,
            )
        until(self._answers, "krb5kdc")

    def stop(self) -> None:
        """End it; the database stays."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def close(self) -> None:
        """End it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder)

    def keytab(self, principal: str) -> Path:
        """Return a keytab of a principal, who is added if he is not there. A name without a realm is of VAULT.TEST."""
        if "@" not in principal:
            principal = f"{principal}@{REALM}"
        path = self._keytabs.get(principal)
        if path is None:
            realm = principal.rpartition("@")[2]
            path = self._keytabs[principal] = self.folder / f"{len(self._keytabs)}.keytab"
            self._admin(realm, f'addprinc -randkey -maxlife "1 hour" {principal}')
            self.change_keys(principal)
        return path

    def change_keys(self, principal: str) -> None:
        """Give the principal new keys, and add them to its keytab."""
        self._admin(principal.rpartition("@")[2], f"ktadd -k {self._keytabs[principal]} {principal}")

    def run(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a client program (kinit, klist) against this KDC."""
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.environment, "PATH": _PATH, **environment},
        )

    @contextmanager
    def using(self) -> Iterator[None]:
        """Point this process's Kerberos library here. It reads the variables each time that it is used."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _write_config(self) -> None:
        # A section's braces must span lines: "{ ... }" on one line is not understood.
        realms = "\n".join(
            f"  {realm} = {{\n    kdc = 127.0.0.1:{self.port}\n  }}" for realm in (REALM, FOREIGN)
        )
        self.config.write_text(
            f"[libdefaults]\n  default_realm = {REALM}\n  dns_lookup_kdc = false\n  dns_lookup_realm = false\n"
            f"  dns_canonicalize_hostname = false\n  rdns = false\n  clockskew = {CLOCK_SKEW_S}\n  udp_preference_limit = 1\n"
            f"[realms]\n{realms}\n[capaths]\n  {FOREIGN} = {{\n    {REALM} = .\n  }}\n"
        )
        databases = "\n".join(
            f"  {realm} = {{\n    database_name = {self.folder}/{realm}.db\n"
            f"    key_stash_file = {self.folder}/{realm}.stash\n    acl_file = {self.folder}/none\n"
            "    max_life = 10h\n    supported_enctypes = aes256-cts:normal\n  }"
            for realm in (REALM, FOREIGN)
        )
        (self.folder / "kdc.conf").write_text(
            f"[kdcdefaults]\n  kdc_listen = 127.0.0.1:{self.port}\n  kdc_tcp_listen = 127.0.0.1:{self.port}\n"
            f"[realms]\n{databases}\n"
            f"[logging]\n  kdc = FILE:{self.folder}/kdc.log\n  admin_server = FILE:{self.folder}/admin.log\n"
        )

    def _admin(self, realm: str, query: str) -> None:
        self._run("kadmin.local", "-r", realm, "-q", query)

    def _run(self, *argv: str) -> None:
        done = self.run(*argv)
        assert done.returncode == 0, done.stderr
        # kadmin.local says what failed, and returns 0 all the same.
        assert not any(word in done.stderr for word in ("error", "while")), done.stderr

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
