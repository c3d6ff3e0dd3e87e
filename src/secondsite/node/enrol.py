"""Enrolment: a registration key becomes a certificate, once.

The key pins the vault's authority, so nothing is trusted on first sight. Nothing is written before the service has
answered; a node that is enrolled already is left as it is.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secondsite import __version__
from secondsite.errors import ConflictError, InvalidInputError
from secondsite.model.ids import NodeId, SiteId
from secondsite.node.config import NodeConfig
from secondsite.ship.client import Endpoint, JsonClient, fetch_ca
from secondsite.ship.identity import SERVICE, CaOnly, Credentials, make_key_and_csr

ROLES: Final = ("source", "target")


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """What the administrator gives. `listen` port 0 picks a free one now, and keeps it."""

    service_host: str
    service_port: int
    key: str
    name: str
    fabric: str
    storage: Path
    listen_host: str
    listen_port: int
    advertise_host: str = ""
    services: tuple[str, ...] = ()
    """Further addresses of the service ("host:port"), for when a standby takes over."""


def enrol(state: Path, request: EnrolRequest) -> NodeConfig:
    """Enrol this node and write its settings and identity into `state`.

    Raises:
        ConflictError: the folder holds an enrolled node.
        InvalidInputError: the key has not the form of one.
        RemoteError: the service refuses the key (used, expired, unknown).
        UnauthenticatedError: what answers is not the vault that the key is for.
    """
    if (state / "node.json").exists():
        raise ConflictError(
            f"{state} holds an enrolled node already", hint="use another --state folder, or remove this one"
        )
    parts = request.key.split(".")
    if len(parts) != 3:
        raise InvalidInputError(
            "this is no registration key", hint="take the whole line that 'node key' printed"
        )
    if not request.storage.is_dir():
        raise InvalidInputError(f"{request.storage} is no folder", hint="create the storage folder first")
    port = request.listen_port or _free_port(request.listen_host)
    ca = fetch_ca(request.service_host, request.service_port, parts[2])
    key, csr = make_key_and_csr(request.name)
    state.mkdir(parents=True, exist_ok=True)
    endpoint = Endpoint(request.service_host, request.service_port, SERVICE)
    with JsonClient(endpoint, CaOnly(ca)) as client:
        answer = client.post(
            "/node/v1/enrol",
            {
                "key": request.key,
                "csr": csr.decode(),
                "name": request.name,
                "roles": list(ROLES),
                "data_address": f"{request.advertise_host or request.listen_host}:{port}",
                "storage": str(request.storage),
                "version": __version__,
            },
        )
    Credentials.write(state / "identity", key=key, certificate=str(answer["certificate"]).encode(), ca=ca)
    config = NodeConfig(
        node=NodeId(str(answer["node"])),
        name=request.name,
        site=SiteId(str(answer["site"])),
        service_host=request.service_host,
        service_port=request.service_port,
        service_name=SERVICE,
        fabric=request.fabric,
        storage=str(request.storage),
        listen_host=request.listen_host,
        listen_port=port,
        services=list(request.services),
    )
    config.save(state)
    return config


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
