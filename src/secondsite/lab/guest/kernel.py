"""The guest's kernel and modules: the distribution's cloud kernel, unpacked into a cache, never installed.

Works for an ordinary user. Needs the package lists of apt on first use, and nothing afterwards.
"""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secondsite.errors import UnavailableError, UnsupportedError
from secondsite.lab.guest.uncompressed import uncompressed

_META_PACKAGE: Final = "linux-image-cloud-amd64"
MODULES: Final = (
    # In the order in which they must be loaded; ext4 and the partition tables are built in.
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"),
    *("virtio_console", "failover", "net_failover", "virtio_net", "evdev", "button"),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: its version, its image, and the modules in the order of `MODULES`."""

    version: str
    image: Path
    modules: tuple[Path, ...]


def fetch_kernel(folder: Path) -> Kernel:
    """Return the kernel that the distribution offers now, from `folder` or downloaded into it (27 MB, once).

    Where apt cannot say what it offers, the newest one in `folder` serves.
    """
    package = _offered_package()
    if package is None:
        kept = [
            _kernel(path)
            for path in sorted(folder.glob("linux-image-*"), key=lambda path: path.stat().st_mtime)
        ]
        if not kept:
            raise UnavailableError(
                f"apt knows no package {_META_PACKAGE}",
                hint="run `apt-get update` as root once; the guest's kernel comes from the distribution",
            )
        return kept[-1]
    target = folder / package
    if not target.is_dir():
        _download(package, target)
    return _kernel(target)


def _offered_package() -> str | None:
    for tool, source in (("apt-cache", "apt"), ("dpkg", "dpkg")):
        if shutil.which(tool) is None:
            raise UnsupportedError(
                f"{tool} is missing", hint=f"the guest is built on Debian and its kin ({source})"
            )
    architecture = _run(["dpkg", "--print-architecture"]).strip()
    if architecture != "amd64":
        raise UnsupportedError(
            f"the lab's guest is not built for {architecture}", hint="use an amd64 machine"
        )
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", _META_PACKAGE], capture_output=True, text=True
    ).stdout
    found = re.search(r"^Depends:.*?\b(linux-image-[0-9][^ ,]*)", shown, re.MULTILINE)
    return found[1] if found else None


def _download(package: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f"tmp-{secrets.token_hex(4)}"
    try:
        work.mkdir()
        _run(["apt-get", "download", package], cwd=work)
        (archive,) = work.glob("*.deb")
        _run(["dpkg", "-x", str(archive), str(work / "tree")])
        kept = work / "kept"
        kept.mkdir()
        (image,) = (work / "tree" / "boot").glob("vmlinuz-*")
        image.rename(kept / "vmlinuz")
        for path in (work / "tree").rglob("*.ko"):
            if path.stem.replace("-", "_") in MODULES:
                path.rename(kept / path.name)
        try:
            kept.rename(target)
        except OSError:
            # Another build was faster; a folder that is there is complete.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _kernel(folder: Path) -> Kernel:
    files = {path.stem.replace("-", "_"): path for path in folder.glob("*.ko")}
    missing = [name for name in MODULES if name not in files]
    if missing:
        raise UnavailableError(
            f"the kernel in {folder} has no modules {', '.join(missing)}",
            hint="delete this folder, so that the kernel is fetched again",
        )
    return Kernel(
        folder.name.removeprefix("linux-image-"), _image(folder), tuple(files[name] for name in MODULES)
    )


def _image(folder: Path) -> Path:
    """The kernel as an emulated processor starts it soonest, unpacked on first use."""
    packed, unpacked = folder / "vmlinuz", folder / "vmlinux"
    if unpacked.exists():
        return unpacked
    content = uncompressed(packed.read_bytes())
    if content is None:
        return packed
    temporary = unpacked.with_name(f"vmlinux.tmp-{secrets.token_hex(4)}")
    temporary.write_bytes(content)
    temporary.rename(unpacked)
    return unpacked


def _run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise UnavailableError(
            f"{' '.join(command)} failed: {done.stderr.strip()[-800:]}",
            hint="run `apt-get update` as root, and look whether the package mirror can be reached",
        )
    return done.stdout
