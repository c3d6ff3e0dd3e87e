"""Where a daemon's log goes: standard error, a line per event with its time, for the system's journal or a file.

Standard output is left to what the command prints, so that `--json` can be piped. What other packages say below
"warning" is left out.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import TextIO, cast


def log_to_stderr() -> None:
    """Set logging up for this process. Call it once, before the daemon starts."""
    line = logging.Formatter("%(asctime)sZ [%(levelname)s] %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    line.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(line)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("secondsite").setLevel(logging.INFO)
    with suppress(ModuleNotFoundError):  # the service can be installed alone
        _structured()


def _structured() -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _StandardError())),
    )


class _StandardError:
    """Standard error as it is when a line is written. A line that cannot be written is lost: a full disk or a closed
    pipe must not end the thread that had something to say.
    """

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
