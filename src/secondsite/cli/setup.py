"""`secondsite vault`, `site`, `cloud`, `network`: what is set up once, before anything is protected."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from secondsite.cli.client import connect
from secondsite.cli.output import Json, err, out, print_fields, print_json, print_rows, reporting
from secondsite.errors import InvalidInputError

vaults = typer.Typer(no_args_is_help=True)
sites = typer.Typer(no_args_is_help=True)
clouds = typer.Typer(no_args_is_help=True)
networks = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Its name.")]


def _done(row: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(row)
    else:
        err.print(text, markup=False)


# -- vault -------------------------------------------------------------------------------------------------


@vaults.command("show", epilog="Example: secondsite vault show")
def show_vault(as_json: Json = False) -> None:
    """Show the vault and a summary of its health."""
    with reporting(as_json=as_json):
        row = connect().get("/vault")
        if as_json:
            print_json(row)
            return
        print_fields(
            {
                "name": row["name"],
                "created": row["created"],
                "CA": row["ca_fingerprint"],
                "items": row["items"]["total"],
                "by state": [f"{count} {state}" for state, count in row["items"]["by_state"].items()],
                "by health": [f"{count} {level}" for level, count in row["items"]["by_health"].items()],
                "nodes": f"{row['nodes']['total']}, {row['nodes']['silent']} silent",
                "jobs running": row["jobs_active"],
            }
        )


@vaults.command("tokens", epilog="Example: secondsite vault tokens")
def list_tokens(as_json: Json = False) -> None:
    """List API tokens (not the secrets)."""
    with reporting(as_json=as_json):
        rows = connect().get("/tokens")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("ID", lambda row: row["id"]),
                ("NAME", lambda row: row["name"]),
                ("ROLE", lambda row: row["role"]),
                ("EXPIRES", lambda row: row["expires"]),
            ],
            empty="There are no tokens.",
        )


@vaults.command("create-token", epilog="Example: secondsite vault create-token night-shift --role Operator")
def create_token(
    name: Name,
    role: Annotated[str, typer.Option(help="Contributor, Operator or Reader.")] = "Reader",
    valid_days: Annotated[float | None, typer.Option(help="Days until it expires; never by default.")] = None,
    as_json: Json = False,
) -> None:
    """Create an API token and print it; it is shown this once."""
    with reporting(as_json=as_json):
        row = connect().post("/tokens", {"name": name, "role": role, "valid_days": valid_days})
        if as_json:
            print_json(row)
        else:
            out.print(row["token"], markup=False)


@vaults.command("revoke-token", epilog="Example: secondsite vault revoke-token ID")
def revoke_token(
    token: Annotated[str, typer.Argument(help="The token's id.")], as_json: Json = False
) -> None:
    """Revoke an API token."""
    with reporting(as_json=as_json):
        _done(connect().delete(f"/tokens/{token}"), "revoked", as_json=as_json)


@vaults.command("audit", epilog="Example: secondsite vault audit --limit 20")
def audit(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List who did what, with the outcome."""
    with reporting(as_json=as_json):
        rows = connect().get("/audit", limit=limit)
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("TIME", lambda row: row["time"]),
                ("WHO", lambda row: row["actor"]),
                ("ROLE", lambda row: row["role"]),
                ("WHAT", lambda row: f"{row['method']} {row['path']}"),
                ("OUTCOME", lambda row: row["outcome"]),
            ],
            empty="Nobody has changed anything yet.",
        )


# -- sites -------------------------------------------------------------------------------------------------


@sites.command("list", epilog="Example: secondsite site list")
def list_sites(as_json: Json = False) -> None:
    """List sites."""
    with reporting(as_json=as_json):
        rows = connect().get("/sites")
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [("NAME", lambda row: row["name"]), ("ID", lambda row: row["id"])],
            empty="There is no site. See: secondsite site create --help",
        )


@sites.command("create", epilog="Example: secondsite site create amsterdam")
def create_site(name: Name, as_json: Json = False) -> None:
    """Add a site."""
    with reporting(as_json=as_json):
        _done(connect().post("/sites", {"name": name}), f"site {name} created", as_json=as_json)


@sites.command("delete", epilog="Example: secondsite site delete amsterdam")
def delete_site(name: Name, as_json: Json = False) -> None:
    """Remove a site without nodes."""
    with reporting(as_json=as_json):
        _done(connect().delete(f"/sites/{name}"), f"site {name} deleted", as_json=as_json)


# -- clouds ------------------------------------------------------------------------------------------------


@clouds.command("list", epilog="Example: secondsite cloud list")
def list_clouds(as_json: Json = False) -> None:
    """List clouds, and where each is mapped to."""
    with reporting(as_json=as_json):
        api = connect()
        rows, mappings = api.get("/clouds"), api.get("/cloud-mappings")
        by_source = {mapping["source"]: mapping for mapping in mappings}
        rows = [{**row, "mapping": by_source.get(row["name"])} for row in rows]
        if as_json:
            print_json(rows)
            return
        print_rows(
            rows,
            [
                ("NAME", lambda row: row["name"]),
                ("SITE", lambda row: row["site"]),
                ("NODES", lambda row: row["nodes"]),
                ("MAPPED TO", lambda row: (row["mapping"] or {}).get("target")),
                ("POLICY", lambda row: (row["mapping"] or {}).get("policy")),
            ],
            empty="There is no cloud. See: secondsite cloud create --help",
        )


@clouds.command("create", epilog="Example: secondsite cloud create gold-ams --site amsterdam --node host-1")
def create_cloud(
    name: Name,
    site: Annotated[str, typer.Option(help="The site of its nodes.")],
    node: Annotated[list[str] | None, typer.Option(help="A node; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Group nodes of a site."""
    with reporting(as_json=as_json):
        row = connect().post("/clouds", {"name": name, "site": site, "nodes": node or []})
        _done(row, f"cloud {name} created", as_json=as_json)


@clouds.command("map", epilog="Example: secondsite cloud map gold-ams gold-rtm --policy every-5-s")
def map_cloud(
    source: Annotated[str, typer.Argument(help="The source cloud.")],
    target: Annotated[str, typer.Argument(help="The target cloud.")],
    policy: Annotated[str, typer.Option(help="The policy that applies to every machine in it.")],
    as_json: Json = False,
) -> None:
    """Say where a cloud's machines replicate to, and under which policy."""
    with reporting(as_json=as_json):
        row = connect().post("/cloud-mappings", {"source": source, "target": target, "policy": policy})
        _done(row, f"{source} replicates to {target} under {policy}", as_json=as_json)


@clouds.command("unmap", epilog="Example: secondsite cloud unmap MAPPING-ID")
def unmap_cloud(
    mapping: Annotated[str, typer.Argument(help="The mapping's id.")], as_json: Json = False
) -> None:
    """Remove a mapping under which nothing is protected."""
    with reporting(as_json=as_json):
        _done(connect().delete(f"/cloud-mappings/{mapping}"), "mapping removed", as_json=as_json)


@clouds.command("delete", epilog="Example: secondsite cloud delete gold-ams")
def delete_cloud(name: Name, as_json: Json = False) -> None:
    """Remove a cloud that is not mapped."""
    with reporting(as_json=as_json):
        _done(connect().delete(f"/clouds/{name}"), f"cloud {name} deleted", as_json=as_json)


# -- networks ----------------------------------------------------------------------------------------------


@networks.command("list", epilog="Example: secondsite network list")
def list_networks(as_json: Json = False) -> None:
    """List the networks that nodes reported, and how they are mapped."""
    with reporting(as_json=as_json):
        api = connect()
        rows, mappings = api.get("/networks"), api.get("/network-mappings")
        if as_json:
            print_json({"networks": rows, "mappings": mappings})
            return
        print_rows(
            rows,
            [
                ("SITE", lambda row: row["site"]),
                ("NODE", lambda row: row["node"]),
                ("NETWORK", lambda row: row["name"]),
                ("ISOLATED", lambda row: row["isolated"]),
                ("ACTIVE", lambda row: row["active"]),
            ],
            empty="The nodes report no networks.",
        )
        out.print()
        print_rows(
            mappings,
            [
                ("FROM", lambda row: f"{row['source_site']}/{row['source_network']}"),
                ("TO", lambda row: f"{row['target_site']}/{row['target_network']}"),
                ("IN A TEST", lambda row: row["test_network"]),
                ("ID", lambda row: row["id"]),
            ],
            empty="No network is mapped: replicas' interfaces will be disconnected.",
        )


@networks.command(
    "map", epilog="Example: secondsite network map amsterdam/lan rotterdam/lan --test-network bubble"
)
def map_network(
    source: Annotated[str, typer.Argument(help="SITE/NETWORK where the machine runs.")],
    target: Annotated[str, typer.Argument(help="SITE/NETWORK where its replica is attached.")],
    test_network: Annotated[
        str | None, typer.Option(help="Network at the target's site for tests; disconnected by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where interfaces on a network are attached at the other site."""
    with reporting(as_json=as_json):
        (source_site, source_network), (target_site, target_network) = _place(source), _place(target)
        body = {
            "source_site": source_site,
            "source_network": source_network,
            "target_site": target_site,
            "target_network": target_network,
            "test_network": test_network,
        }
        _done(connect().post("/network-mappings", body), f"{source} is mapped to {target}", as_json=as_json)


@networks.command("unmap", epilog="Example: secondsite network unmap MAPPING-ID")
def unmap_network(
    mapping: Annotated[str, typer.Argument(help="The mapping's id.")], as_json: Json = False
) -> None:
    """Remove a network mapping."""
    with reporting(as_json=as_json):
        _done(connect().delete(f"/network-mappings/{mapping}"), "mapping removed", as_json=as_json)


def _place(text: str) -> tuple[str, str]:
    site, _, network = text.partition("/")
    if not site or not network:
        raise InvalidInputError(f"not a network of a site: {text!r}", hint="expected SITE/NETWORK")
    return site, network
