"""A node's own settings, and the folders that everything else stands in.

<state>/node.json        who we are, where the service is (written once, by enrolment)
        identity/        key.pem, cert.pem, ca.pem
        commands/        results of the service's commands, by id
        items/<item>/    see records.py
        run/             sockets, pid files, logs of views, the mark of the boot (a tmpfs will do)
<storage>/secondsite/journals/<item>/    journals
                     replicas/<item>/    overlays of tests and failed-over machines
                     scratch/            scratch of running captures
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from secondsite import durable
from secondsite.errors import CorruptError, NotFoundError
from secondsite.model.ids import ItemId, NodeId, SiteId


@dataclass(frozen=True, slots=True)
class KerberosConfig:
    """A node's Kerberos settings. With a `listen_host` it takes tickets there, as `service` (by default its principal).

    principal, keytab: who it is when it dials a listener that takes tickets; the keytab also holds the service's key.
    peers: which nodes principals stand for, beyond what the service names.
    """

    principal: str
    keytab: str
    service: str = ""
    listen_host: str = ""
    listen_port: int = 0
    advertise_host: str = ""
    peers: Mapping[str, str] = field(default_factory=dict)

    @property
    def accepts(self) -> str:
        """The service principal that clients dial."""
        return self.service or self.principal


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What enrolment wrote. `fabric` is the hypervisor's URI; `listen_*` is where the replication listener binds."""

    node: NodeId
    name: str
    site: SiteId
    service_host: str
    service_port: int
    service_name: str
    fabric: str
    storage: str
    listen_host: str
    listen_port: int
    services: list[str] = field(default_factory=list)
    """Further addresses of the service ("host:port"): where a standby listens once it has taken over."""
    kerberos: KerberosConfig | None = None
    metrics_port: int | None = None
    """Where Prometheus is answered on 127.0.0.1; None: nowhere. Set it in node.json and start the node again."""

    @property
    def service_addresses(self) -> list[tuple[str, int]]:
        """Every address of the service, each once, in the order in which they are tried."""
        found = [(self.service_host, self.service_port), *map(_address, self.services)]
        return list(dict.fromkeys(found))

    def with_services(self, addresses: Sequence[tuple[str, int]]) -> NodeConfig:
        """Return the settings with these addresses of the service in place of the old ones."""
        (host, port), *others = addresses
        return replace(
            self,
            service_host=host,
            service_port=port,
            services=[_shown(*address) for address in others],
        )

    def save(self, state: Path) -> None:
        """Write the settings durably."""
        durable.write_atomic(state / "node.json", json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, state: Path) -> NodeConfig:
        """Read the settings; NotFoundError if the node was never enrolled."""
        path = state / "node.json"
        try:
            fields = json.loads(path.read_text())
            if fields.get("kerberos") is not None:
                fields["kerberos"] = KerberosConfig(**fields["kerberos"])
            return cls(**fields)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{state} holds no enrolled node", hint="enrol it first: secondsite node enrol --help"
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptError(f"{path} does not parse: {error}", hint="enrol the node again") from error


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Folders:
    """Where things are; every folder exists after `make`."""

    state: Path
    storage: Path

    @property
    def items(self) -> Path:
        return self.state / "items"

    @property
    def identity(self) -> Path:
        return self.state / "identity"

    @property
    def commands(self) -> Path:
        return self.state / "commands"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def scratch(self) -> Path:
        return self.storage / "secondsite" / "scratch"

    def journal(self, item: ItemId) -> Path:
        """Return the folder of the item's journal."""
        return self.storage / "secondsite" / "journals" / item

    def replicas(self, item: ItemId) -> Path:
        """Return the folder of the item's overlays."""
        return self.storage / "secondsite" / "replicas" / item

    def make(self) -> None:
        """Create what is missing."""
        for folder in (self.items, self.identity, self.commands, self.run, self.scratch):
            durable.make_folders(folder)
        for name in ("journals", "replicas"):
            durable.make_folders(self.storage / "secondsite" / name)
        # So that the stand-alone commands find the image servers that run, given a journal's folder alone.
        link = self.storage / "secondsite" / "run"
        if not link.is_symlink() or link.readlink() != self.run.absolute():
            link.unlink(missing_ok=True)
            link.symlink_to(self.run.absolute())
