"""The cache of QEMU's capabilities, shared by all hypervisors of the lab.

A libvirtd that has never seen a QEMU probes every emulator of the machine, which takes 4 to 8 s; one that finds the
results of an earlier probe in its cache folder starts in 0.1 s. So the first hypervisor's results are kept and given
to all later ones. libvirt itself checks whether they still fit (change times of the binaries, kernel, CPU) and probes
again if not, so a stale cache costs time but never correctness.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path


def default_cache() -> Path:
    """Where the lab keeps what is worth keeping: $XDG_CACHE_HOME/secondsite, else ~/.cache/secondsite."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "secondsite"


def capability_folder(cache: Path, mode: str, binaries: list[Path]) -> Path:
    """Return the folder of these binaries' capabilities.

    The key is the binaries' paths, sizes and change times: it says more than their version numbers, and asks no
    process. `mode` is part of it since root and an ordinary user may see different devices (/dev/kvm).
    """
    key = hashlib.sha256(mode.encode())
    for binary in binaries:
        stat = binary.stat()
        key.update(f"\0{binary}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}".encode())
    return cache / "libvirt" / key.hexdigest()[:16]


def restore(kept: Path, folder: Path) -> bool:
    """Copy the kept capabilities into libvirt's `folder`; False if none were kept."""
    if not kept.is_dir():
        return False
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return True


def keep(folder: Path, kept: Path) -> None:
    """Keep what libvirt wrote into `folder`, for the next start. Of two that try at once, the first wins."""
    if kept.is_dir() or not any(folder.glob("*.xml")):
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f"{kept.name}.tmp-{secrets.token_hex(4)}")
    try:
        shutil.copytree(folder, temporary)
        temporary.rename(kept)
    except FileExistsError:
        pass
    except OSError:
        # Renaming onto a folder that another start has put there meanwhile: theirs is as good as ours.
        if not kept.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
