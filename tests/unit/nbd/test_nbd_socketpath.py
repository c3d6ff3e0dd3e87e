"""Sockets in folders whose paths are too long for the kernel; and what is missing says so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.errors import UnsupportedError
from secondsite.nbd.client import Connection
from secondsite.nbd.socketpath import SOCKET_PATH_MAX, connect, fits, name_for_child, reachable


@pytest.mark.parametrize("depth", [0, 150])
def test_socket_is_reached_whatever_the_depth_of_its_folder(short_path: Path, depth: int) -> None:
    folder = short_path / ("x" * depth) if depth else short_path
    folder.mkdir(exist_ok=True)
    path = folder / "s"
    assert fits(path) is (depth == 0)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with reachable(path) as name:
            listener.bind(name)
        listener.listen()
        with connect(path, 20), listener.accept()[0]:
            pass
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert path.is_socket()


def test_child_in_the_folder_reaches_the_socket_by_its_name(short_path: Path) -> None:
    folder = short_path / ("x" * 150)
    folder.mkdir()
    program = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    name = name_for_child(folder / "s")
    assert len(name) <= SOCKET_PATH_MAX
    subprocess.run([sys.executable, "-c", program, name], cwd=folder, check=True, timeout=60)
    assert (folder / "s").is_socket()


def test_longest_path_that_the_kernel_takes_fits(short_path: Path) -> None:
    path = short_path / ("s" * (SOCKET_PATH_MAX - len(bytes(short_path)) - 1))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert fits(path)
    assert not fits(path.with_name(path.name + "s"))


def test_failed_connection_leaves_no_descriptor(short_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        connect(short_path / "none", 1)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_missing_libnbd_is_named_when_it_is_needed(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nbd", None)
    with pytest.raises(UnsupportedError, match="libnbd") as raised:
        Connection(short_path / "s", "", deadline=0.0)
    assert "python3-libnbd" in raised.value.hint
