"""The service's database. The only package that knows SQL; one module of small functions per aggregate."""
