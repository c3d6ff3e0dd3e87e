"""A daemon's log never ends what it tells of."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest
import structlog

from secondsite.cli.logs import log_to_stderr


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_line_goes_to_standard_error_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    log_to_stderr()
    later = io.StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    structlog.get_logger("x").warning("it happened", item="web-1")
    assert "it happened" in later.getvalue()
    assert "web-1" in later.getvalue()


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    log_to_stderr()
    closed = io.StringIO()
    closed.close()
    for broken in (closed, Full()):
        monkeypatch.setattr(sys, "stderr", broken)
        structlog.get_logger("x").warning("nobody reads this")
