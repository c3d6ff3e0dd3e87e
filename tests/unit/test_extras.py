"""A node installs without the service's packages, and a journal is read with the base alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVICE = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "dbos", "psycopg")
CLIENT = ("httpx",)
NODE = ("cheroot", "cryptography", "structlog", "stamina", "libvirt", "nbd")

_FORBID = """
import importlib.abc, sys
class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
forbidden = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Forbid())
"""
_IMPORT_ALL = """
import importlib, pkgutil
for name in sys.argv[1].split(","):
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(found.name)
        print(found.name)
"""
_COMMAND = """
from secondsite.cli import main
main()
"""


def python(code: str, without: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python in which some packages are not installed."""
    command = [sys.executable, "-c", _FORBID + code, ",".join(without), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_hook_forbids() -> None:
    done = python("import httpx", CLIENT)
    assert done.returncode == 1
    assert "httpx is not installed here" in done.stderr


def test_every_module_of_a_node_imports_without_the_services_packages() -> None:
    packages = [
        f"secondsite.{name}"
        for name in ("node", "journal", "nbd", "ship", "capture", "fabric", "blocks", "hrl")
    ]
    done = python(_IMPORT_ALL, SERVICE + CLIENT, ",".join(packages))
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"secondsite.node.daemon", "secondsite.journal.journal"} <= set(done.stdout.split())
    assert len(done.stdout.split()) > 80


def test_every_module_of_the_journal_imports_with_the_base_alone() -> None:
    done = python(_IMPORT_ALL, SERVICE + CLIENT + NODE, "secondsite.journal,secondsite.hrl,secondsite.blocks")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "words", [["journal", "--help"], ["journal", "extract", "--help"], ["node", "run", "--help"], ["--help"]]
)
def test_help_needs_the_base_alone(words: list[str]) -> None:
    done = python(_COMMAND, SERVICE + CLIENT + NODE, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Usage" in done.stdout


def test_a_journal_is_listed_with_the_base_alone(tmp_path: object) -> None:
    done = python(_COMMAND, SERVICE + CLIENT + NODE, "journal", "ls", str(tmp_path), "--json")
    assert "not installed" not in done.stderr
    assert done.returncode in {0, 4}, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("words", "extra"),
    [(["item", "list"], "cli"), (["service", "run"], "service"), (["node", "run"], "node")],
)
def test_a_command_whose_part_is_missing_says_what_to_install(words: list[str], extra: str) -> None:
    done = python(_COMMAND, SERVICE + CLIENT + ("cheroot", "cryptography", "structlog", "stamina"), *words)
    assert done.returncode == 2
    assert f"secondsite[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
