"""libvirt's errors become ours, by what the caller can do about them."""

from __future__ import annotations

import libvirt
import pytest

from secondsite.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NoSpaceError,
    NotFoundError,
    Retry,
    SecondSiteError,
    TimeoutExceededError,
    UnavailableError,
    UnsupportedError,
)
from secondsite.fabric.connection import Connection, translate
from secondsite.fabric.libvirt_power import Waiting
from secondsite.fabric.port import CancelledError, HypervisorError


def libvirt_error(
    code: int, domain: int = libvirt.VIR_FROM_QEMU, text: str = "words of libvirt"
) -> libvirt.libvirtError:
    error = libvirt.libvirtError("call failed")
    error.err = (code, domain, text, 2, None, None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (libvirt.VIR_ERR_NO_DOMAIN, NotFoundError),
        (libvirt.VIR_ERR_NO_NETWORK, NotFoundError),
        (libvirt.VIR_ERR_OPERATION_INVALID, ConflictError),
        (libvirt.VIR_ERR_DOM_EXIST, ConflictError),
        (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, UnsupportedError),
        (libvirt.VIR_ERR_XML_ERROR, InvalidInputError),
        (libvirt.VIR_ERR_OPERATION_DENIED, ForbiddenError),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, TimeoutExceededError),
        (libvirt.VIR_ERR_RPC, UnavailableError),
        (libvirt.VIR_ERR_NO_CONNECT, UnavailableError),
        (libvirt.VIR_ERR_INTERNAL_ERROR, HypervisorError),
        (libvirt.VIR_ERR_SYSTEM_ERROR, HypervisorError),
    ],
)
def test_the_code_decides_the_class(code: int, expected: type[SecondSiteError]) -> None:
    error = translate(libvirt_error(code), "start web01")
    assert type(error) is expected
    assert error.message == "start web01: words of libvirt"
    assert error.attributes["libvirt_code"] == code


def test_whatever_the_connection_reports_means_unavailable() -> None:
    broken = translate(libvirt_error(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC), "x")
    assert type(broken) is UnavailableError
    assert broken.retry is Retry.LATER


def test_a_full_file_system_is_told_as_such() -> None:
    full = libvirt_error(
        libvirt.VIR_ERR_OPERATION_FAILED, text="unable to write '/x': No space left on device"
    )
    assert type(translate(full, "x")) is NoSpaceError


def test_a_daemon_that_is_not_there_is_unavailable() -> None:
    connection = Connection("qemu+unix:///system?socket=/nonexistent/libvirt-sock")
    with pytest.raises(UnavailableError, match="cannot connect"), connection.use("look"):
        pytest.fail("there is no connection to use")
    connection.close()


def test_a_wait_ends_by_success_timeout_or_cancellation() -> None:
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    waiting = Waiting(monotonic=lambda: now[0], pause=pause, poll_s=0.1)
    assert waiting.until(lambda: now[0] >= 2, 10) is True
    assert now[0] == pytest.approx(2, abs=0.11)
    assert waiting.until(lambda: False, 5) is False
    assert now[0] == pytest.approx(7, abs=0.21)
    with pytest.raises(CancelledError):
        waiting.until(lambda: False, 100, lambda: now[0] > 8)
    assert now[0] < 8.3
