"""The vault and its sites."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from secondsite.errors import ConflictError
from secondsite.model.ids import SiteId
from secondsite.service.store import rows
from secondsite.service.store.database import Transaction
from secondsite.service.store.records import Site, Vault
from secondsite.service.store.tables import sites, vault


def create_vault(tx: Transaction, name: str, now: datetime) -> None:
    """Write the one row; ConflictError if there is one."""
    tx.execute(sa.insert(vault).values(id=1, name=name, created=now))


def get_vault(tx: Transaction) -> Vault:
    """Return the vault; NotFoundError before `init`."""
    return rows.get(tx, Vault, sa.select(vault), "vault yet: initialise the service first")


def check_authority(tx: Transaction, fingerprint: str) -> bool:
    """Whether the vault is of this authority, or has none recorded; False before `init`."""
    found = tx.execute(sa.select(vault.c.ca_fingerprint)).one_or_none()
    if found is None:
        return False
    if found[0] not in {None, fingerprint}:
        raise ConflictError(
            "this folder holds another authority than the vault in the database",
            hint="copy ca/ca.pem and ca/ca.key from the folder in which the vault was made",
            folder=fingerprint,
            vault=found[0],
        )
    return True


def pin_authority(tx: Transaction, fingerprint: str) -> None:
    """Record the vault's authority, once."""
    if check_authority(tx, fingerprint):
        tx.execute(
            sa.update(vault).where(vault.c.ca_fingerprint.is_(None)).values(ca_fingerprint=fingerprint)
        )


def create_site(tx: Transaction, site: Site) -> None:
    """Add a site; ConflictError if the name is taken."""
    tx.execute(sa.insert(sites).values(id=site.id, name=site.name, created=site.created))


def site(tx: Transaction, id_or_name: str) -> Site:
    """Return a site by id or name."""
    return rows.get(
        tx,
        Site,
        sa.select(sites).where(sa.or_(sites.c.id == id_or_name, sites.c.name == id_or_name)),
        f"site {id_or_name!r}",
    )


def list_sites(tx: Transaction) -> list[Site]:
    """Return all sites by name."""
    return rows.listed(tx, Site, sa.select(sites).order_by(sites.c.name))


def site_names(tx: Transaction) -> dict[SiteId, str]:
    """Return the name of each site."""
    return {found.id: found.name for found in list_sites(tx)}


def delete_site(tx: Transaction, site_id: SiteId) -> None:
    """Remove a site; ConflictError if anything refers to it."""
    tx.execute(sa.delete(sites).where(sites.c.id == site_id))
