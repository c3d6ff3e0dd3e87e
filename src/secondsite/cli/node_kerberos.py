"""`secondsite node kerberos`: the Kerberos settings of this machine's node. Looks at the keytab before it writes anything."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secondsite.cli.output import Json, err, print_fields, print_json, reporting
from secondsite.errors import InvalidInputError

if TYPE_CHECKING:
    from secondsite.node.config import KerberosConfig


def kerberos(
    principal: Annotated[
        str, typer.Option(help="Who this node is: NAME@REALM. Without it the settings are shown.")
    ] = "",
    keytab: Annotated[Path | None, typer.Option(help="File with the keys of the principal.")] = None,
    service: Annotated[
        str, typer.Option(help="Principal of the listener, if it is another one; its keys are in the keytab.")
    ] = "",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of a listener that takes tickets; without it there is none.")
    ] = "",
    advertise: Annotated[str, typer.Option(help="Host name under which other nodes reach it.")] = "",
    peer: Annotated[
        list[str] | None,
        typer.Option(help="PRINCIPAL=NODE: a node, by its id, that the service does not name. Repeatable."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove the settings.")] = False,
    state: Annotated[Path, typer.Option(help="The node's state folder.")] = Path("/var/lib/secondsite/node"),
    as_json: Json = False,
) -> None:
    """Replicate with Kerberos tickets in place of certificates. The node takes it up when it starts next."""
    with reporting(as_json=as_json):
        from secondsite.node.config import NodeConfig

        config = NodeConfig.load(state)
        if off:
            config = replace(config, kerberos=None)
        elif principal:
            settings = _settings(principal, keytab, service, listen, advertise, peer or [])
            _check(settings, state)
            config = replace(config, kerberos=settings)
        if off or principal:
            config.save(state)
            err.print("written; restart the node", markup=False)
        shown = {} if config.kerberos is None else asdict(config.kerberos)
        print_json(shown) if as_json else print_fields(shown)


def _settings(
    principal: str, keytab: Path | None, service: str, listen: str, advertise: str, peers: list[str]
) -> KerberosConfig:
    from secondsite.cli.node import host_port
    from secondsite.node.config import KerberosConfig
    from secondsite.ship.identity import parse_node_id
    from secondsite.ship.kerberos import parse_principal

    if keytab is None:
        raise InvalidInputError("a principal needs its keytab", hint="add --keytab FILE")
    host, port = host_port(listen) if listen else ("", 0)
    if host in {"0.0.0.0", "::"} and not advertise:  # noqa: S104 - compared, not bound
        raise InvalidInputError(
            "other nodes cannot reach a wildcard address",
            hint="add --advertise HOST, or --listen ADDRESS:PORT",
        )
    if listen and port == 0:
        raise InvalidInputError("the listener needs a port", hint="8083, unless it is taken")
    named = {}
    for text in peers:
        name, _, node = text.rpartition("=")
        named[parse_principal(name)] = str(parse_node_id(node))
    return KerberosConfig(
        principal=parse_principal(principal),
        keytab=str(keytab.absolute()),
        service=parse_principal(service) if service else "",
        listen_host=host,
        listen_port=port,
        advertise_host=advertise,
        peers=named,
    )


def _check(settings: KerberosConfig, state: Path) -> None:
    """Refuse settings that could not work: no gssapi, no keytab, no key in it."""
    from secondsite.ship.kerberos import KerberosAcceptor

    for name in {settings.principal, settings.accepts}:
        KerberosAcceptor(name, Path(settings.keytab), lambda _: None, state / "identity" / "replay").check()
