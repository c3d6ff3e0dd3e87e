"""Migrations of the service's database, run by `Store.open`."""
