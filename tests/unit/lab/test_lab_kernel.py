"""Where the guest's kernel comes from: apt's offer, fetched once, or what is kept. apt itself is a stand-in here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from secondsite.errors import UnavailableError, UnsupportedError
from secondsite.lab.guest.kernel import MODULES, fetch_kernel

PACKAGE = "linux-image-6.1.0-99-cloud-amd64"


class Apt:
    """Stand-ins for apt-cache and apt-get, and the real dpkg; `calls` are the downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        folder.mkdir()
        self.offer(PACKAGE)
        self._tool("apt-get", f'echo "$@" >> {self.calls}; cp {folder}/package.deb here.deb')

    def offer(self, package: str | None) -> None:
        line = f"Depends: {package} (= 6.1.99-1)" if package else ""
        self._tool("apt-cache", f"echo '{line}'")

    def pack(self, modules: tuple[str, ...] = MODULES) -> None:
        tree = self.folder / "tree"
        for name in ("DEBIAN", "boot", "lib/modules/6.1/kernel"):
            (tree / name).mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            "Package: k\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
        )
        (tree / "boot/vmlinuz-6.1.0-99-cloud-amd64").write_bytes(b"kernel")
        for name in (*modules, "unwanted"):
            (tree / f"lib/modules/6.1/kernel/{name}.ko").write_bytes(name.encode())
        subprocess.run(
            ["dpkg-deb", "-b", str(tree), str(self.folder / "package.deb")], check=True, capture_output=True
        )

    def _tool(self, name: str, script: str) -> None:
        tool = self.folder / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return Apt(tmp_path / "bin")


def test_the_kernel_is_fetched_once_and_only_what_is_needed_is_kept(apt: Apt, tmp_path: Path) -> None:
    apt.pack()
    kernel = fetch_kernel(tmp_path / "cache")
    assert fetch_kernel(tmp_path / "cache") == kernel
    assert apt.calls.read_text().splitlines() == [f"download {PACKAGE}"]
    assert kernel.version == "6.1.0-99-cloud-amd64"
    assert kernel.image.read_bytes() == b"kernel"
    assert [module.stem for module in kernel.modules] == list(MODULES)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [PACKAGE]
    assert len(list((tmp_path / "cache" / PACKAGE).iterdir())) == len(MODULES) + 1


def test_a_kept_kernel_serves_when_apt_offers_none(apt: Apt, tmp_path: Path) -> None:
    apt.pack()
    kernel = fetch_kernel(tmp_path / "cache")
    apt.offer(None)
    assert fetch_kernel(tmp_path / "cache") == kernel


def test_without_package_lists_the_hint_says_what_to_run(apt: Apt, tmp_path: Path) -> None:
    apt.offer(None)
    with pytest.raises(UnavailableError) as caught:
        fetch_kernel(tmp_path / "cache")
    assert "apt-get update" in caught.value.hint


def test_a_failed_download_leaves_nothing_that_looks_like_a_kernel(apt: Apt, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="apt-get download"):
        fetch_kernel(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_kernel_without_a_needed_module_is_refused(apt: Apt, tmp_path: Path) -> None:
    apt.pack(MODULES[:-1])
    with pytest.raises(UnavailableError, match="no modules button"):
        fetch_kernel(tmp_path / "cache")


def test_a_machine_without_apt_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="apt-cache is missing"):
        fetch_kernel(tmp_path)
