"""`secondsite node`: list the vault's nodes, invite one, enrol this machine, run the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from secondsite.cli.client import connect
from secondsite.cli.logs import log_to_stderr
from secondsite.cli.node_export import export
from secondsite.cli.node_kerberos import kerberos
from secondsite.cli.node_keys import key, list_keys, revoke_key
from secondsite.cli.output import Json, err, out, print_fields, print_json, print_rows, reporting
from secondsite.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True)

State = Annotated[Path, typer.Option(help="The node's state folder.", show_default=True)]
DEFAULT_STATE = Path("/var/lib/secondsite/node")


@app.command("list", epilog="Example: secondsite node list")
def list_nodes(as_json: Json = False) -> None:
    """List nodes and when they were last heard of."""
    with reporting(as_json=as_json):
        rows = connect().get("/nodes")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("NAME", lambda row: row["name"]),
                ("SITE", lambda row: row["site"]),
                ("ALIVE", lambda row: row["alive"]),
                ("HEARD", lambda row: None if row["seen_s"] is None else f"{row['seen_s']:.0f} s ago"),
                ("ADDRESS", lambda row: row["data_address"]),
                ("MACHINES", lambda row: row["vms"]),
                ("ITEMS", lambda row: row["items"]),
            ],
            empty="No node is enrolled. See: secondsite node key --help",
        )


@app.command(epilog="Example: secondsite node show host-1")
def show(node: Annotated[str, typer.Argument(help="Its name or id.")], as_json: Json = False) -> None:
    """Show a node."""
    with reporting(as_json=as_json):
        row = connect().get(f"/nodes/{node}")
        print_json(row) if as_json else print_fields(row)


@app.command(
    epilog="Example: secondsite node enrol --service dr.example:8445 --key KEY --name host-1 --storage /srv/dr"
)
def enrol(
    service: Annotated[
        list[str],
        typer.Option(help="HOST:PORT of the service's face for nodes; again for each standby of it."),
    ],
    key: Annotated[str, typer.Option(help="The registration key that 'node key' printed.")],
    name: Annotated[str, typer.Option(help="The node's name in the vault.")],
    storage: Annotated[Path, typer.Option(help="Folder for journals and replicas.")],
    state: State = DEFAULT_STATE,
    fabric: Annotated[str, typer.Option(help="The hypervisor's libvirt URI.")] = "qemu:///system",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of the replication listener; port 0 picks one.")
    ] = "0.0.0.0:8084",
    advertise: Annotated[
        str, typer.Option(help="Host name or address under which other nodes reach it.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Enrol this machine: its registration key becomes a certificate."""
    with reporting(as_json=as_json):
        from secondsite.node.enrol import EnrolRequest
        from secondsite.node.enrol import enrol as enrol_node

        (service_host, service_port), *others = [host_port(address) for address in service]
        listen_host, listen_port = host_port(listen)
        if listen_host in {"0.0.0.0", "::"} and not advertise:  # noqa: S104 - compared, not bound
            raise InvalidInputError(
                "other nodes cannot reach a wildcard address",
                hint="add --advertise HOST, or --listen ADDRESS:PORT",
            )
        config = enrol_node(
            state,
            EnrolRequest(
                service_host=service_host,
                service_port=service_port,
                key=key,
                name=name,
                fabric=fabric,
                storage=storage,
                listen_host=listen_host,
                listen_port=listen_port,
                advertise_host=advertise,
                services=tuple(f"{host}:{port}" for host, port in others),
            ),
        )
        if as_json:
            print_json({"node": config.node, "name": config.name, "state": str(state)})
        else:
            err.print(
                f"enrolled as {config.name}; start it: secondsite node run --state {state}", markup=False
            )


@app.command(epilog="Example: secondsite node run --state /var/lib/secondsite/node")
def run(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Run the node until it is told to end (SIGTERM)."""
    with reporting(as_json=as_json):
        from secondsite.node.daemon import run as run_node

        def ready(facts: Mapping[str, Any]) -> None:
            if as_json:
                print_json(facts)
            else:
                err.print(f"node {facts['name']} listens on {facts['listen']}", markup=False)

        log_to_stderr()
        run_node(state, ready)


@app.command(
    epilog="Example: secondsite node services dr-1.example:8445 dr-2.example:8445 --state /var/lib/secondsite/node"
)
def services(
    address: Annotated[
        list[str] | None,
        typer.Argument(help="HOST:PORT of the service and of each standby; none: only show."),
    ] = None,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Show, or set, where this node looks for the service. The node reads it when it starts."""
    with reporting(as_json=as_json):
        from secondsite.node.config import NodeConfig

        config = NodeConfig.load(state)
        if address:
            config = config.with_services([host_port(text) for text in address])
            config.save(state)
        known = [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in config.service_addresses
        ]
        if as_json:
            print_json({"node": config.name, "services": known})
        else:
            for line in known:
                out.print(line, markup=False)
            if address:
                err.print("restart the node for this to take effect", markup=False)


@app.command(
    "start-held",
    epilog="Example: secondsite node start-held web-1 --state /var/lib/secondsite/node "
    "--confirm 'I checked that web-1 does not run at the other site'",
)
def start_held(
    item: Annotated[str, typer.Argument(help="The item's name or id.")],
    state: State = DEFAULT_STATE,
    confirm: Annotated[str, typer.Option(help="The sentence that the command asks for.")] = "",
    wait_s: Annotated[float, typer.Option("--wait", help="How many seconds to wait for the daemon.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Run a machine that this host holds after its boot, since nobody confirmed that it may run here.

    Works without the service and without the other site: look there yourself first, or it may run twice.
    """
    with reporting(as_json=as_json):
        from secondsite.node.source.held import order_start, wait_for_start

        folder, record = order_start(state / "items", item, confirm)
        wait_for_start(folder, wait_s)
        if as_json:
            print_json({"item": record.item, "name": record.name, "held": False})
        else:
            err.print(f"{record.name} is not held any more; this node runs and replicates it", markup=False)


@app.command(epilog="Example: secondsite node remove host-1")
def remove(node: Annotated[str, typer.Argument(help="Its name or id.")], as_json: Json = False) -> None:
    """Remove a node from the vault: its certificate is worth nothing from then on."""
    with reporting(as_json=as_json):
        row = connect().delete(f"/nodes/{node}")
        if as_json:
            print_json(row)
        else:
            err.print(f"node {node} removed", markup=False)


app.command(epilog="Example: secondsite node export web-1 --output /mnt/medium/web-1")(export)


app.command(
    epilog="Example: secondsite node kerberos --principal HTTP/host-1.example@EXAMPLE --keytab /etc/secondsite/node.keytab "
    "--listen 0.0.0.0:8083 --advertise host-1.example"
)(kerberos)


app.command(epilog="Example: secondsite node key --site amsterdam")(key)
app.command("keys", epilog="Example: secondsite node keys")(list_keys)
app.command("revoke-key", epilog="Example: secondsite node revoke-key 4f1c09ab23de")(revoke_key)


def host_port(text: str) -> tuple[str, int]:
    """Parse "HOST:PORT"."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidInputError(f"not an address: {text!r}", hint="expected HOST:PORT")
    return host.strip("[]"), int(port)
