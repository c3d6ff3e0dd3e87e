"""Builds the guest: a kernel and an initramfs with busybox, a few modules and the workload.

The first build downloads a kernel (seconds); later ones find everything in the cache, by the hash of what goes in.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from secondsite.errors import UnavailableError
from secondsite.lab.capabilities import default_cache
from secondsite.lab.guest import initramfs
from secondsite.lab.guest.kernel import Kernel, fetch_kernel

_COMPILE: Final = ("gcc", "-O2", "-static", "-s")
_PROGRAMS: Final = ("workload", "agent")
_HOOKS: Final = ("pre-freeze", "post-thaw")
_APPLETS: Final = ["sh", "mount", "insmod", "ip", "udhcpc", "sync", "poweroff", "echo", "sleep"]


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """What a guest boots from, beside its disks."""

    kernel: Path
    initrd: Path

    def copy_to(self, folder: Path) -> GuestFiles:
        """Copy both into a folder that the hypervisor's user can read (a cache in a home folder often is not)."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        copies = []
        for path in (self.kernel, self.initrd):
            copy = folder / path.name
            if not copy.exists():
                temporary = folder / f"{path.name}.tmp-{secrets.token_hex(4)}"
                shutil.copyfile(path, temporary)
                temporary.chmod(0o644)
                temporary.rename(copy)
            copies.append(copy)
        return GuestFiles(*copies)


class GuestBuilder:
    """Builds into `cache` (the user's cache folder unless given)."""

    def __init__(self, cache: Path | None = None) -> None:
        self._folder = (default_cache() if cache is None else cache) / "guest"

    def build(self) -> GuestFiles:
        """Return the guest's files, built if they are not in the cache.

        Raises UnavailableError, with what to install, if a tool is missing or the kernel cannot be fetched.
        """
        busybox = _busybox()
        kernel = fetch_kernel(self._folder)
        package = resources.files("secondsite.lab.guest")
        sources = {
            name: (package / name).read_bytes() for name in ("init", *(f"{name}.c" for name in _PROGRAMS))
        }
        key = hashlib.sha256("\0".join((*_COMPILE, *_APPLETS, kernel.version)).encode())
        for content in (
            busybox,
            *sources.values(),
            *map(_hook, _HOOKS),
            *(module.name.encode() for module in kernel.modules),
        ):
            key.update(len(content).to_bytes(8, "little") + content)
        initrd = self._folder / kernel.image.parent.name / f"initrd-{key.hexdigest()[:16]}.img"
        if not initrd.exists():
            programs = {name: self._compile(name, sources[f"{name}.c"]) for name in _PROGRAMS}
            content = initramfs.archive(_entries(kernel, programs | {"busybox": busybox}, sources["init"]))
            temporary = initrd.with_name(f"{initrd.name}.tmp-{secrets.token_hex(4)}")
            temporary.write_bytes(content)
            temporary.rename(initrd)
        return GuestFiles(kernel.image, initrd)

    def _compile(self, name: str, source: bytes) -> bytes:
        work = self._folder / f"tmp-{secrets.token_hex(4)}"
        work.mkdir(parents=True)
        try:
            (work / f"{name}.c").write_bytes(source)
            try:
                subprocess.run(
                    [*_COMPILE, "-o", name, f"{name}.c"],
                    cwd=work,
                    check=True,
                    capture_output=True,
                    text=True,
                )
            except FileNotFoundError as error:
                raise UnavailableError("gcc is not installed", hint="install gcc and libc6-dev") from error
            except subprocess.CalledProcessError as error:
                raise UnavailableError(
                    f"the guest's {name} does not compile: {error.stderr.strip()[-800:]}",
                    hint="it is linked statically: install libc6-dev",
                ) from error
            return (work / name).read_bytes()
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _entries(kernel: Kernel, programs: dict[str, bytes], init: bytes) -> dict[str, initramfs.Entry]:
    folders = ("bin", "dev", "proc", "sys", "mnt", "modules", "tmp", "etc", "etc/secondsite")
    entries = {name: initramfs.folder() for name in folders}
    entries["init"] = initramfs.program(init)
    entries |= {f"bin/{name}": initramfs.program(content) for name, content in programs.items()}
    for applet in _APPLETS:
        entries[f"bin/{applet}"] = initramfs.link("busybox")
    for hook in _HOOKS:
        entries[f"etc/secondsite/{hook}"] = initramfs.program(_hook(hook))
    for place, module in enumerate(kernel.modules):
        # The name's number keeps the order in which init loads them.
        entries[f"modules/{place:02}-{module.name}"] = initramfs.program(module.read_bytes())
    return entries


def _hook(name: str) -> bytes:
    """Return a hook of the guest's freezes (capture/quiesce.py): it tells on the console that it ran."""
    return f"#!/bin/sh\necho SS-HOOK {name} >/dev/console\n".encode()


def _busybox() -> bytes:
    """Return a busybox that needs no libraries; ELF without an interpreter is static."""
    hint = "install the package busybox-static"
    found = shutil.which("busybox")
    if found is None:
        raise UnavailableError("busybox is not installed", hint=hint)
    content = Path(found).read_bytes()
    if b"/ld-linux" in content[:4096] or b"/ld-musl" in content[:4096]:
        raise UnavailableError(f"{found} is not linked statically", hint=hint)
    return content
