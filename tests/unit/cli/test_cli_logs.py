"""A daemon's log goes to standard error, whichever of the two libraries writes it."""

from __future__ import annotations

import re
import subprocess
import sys

CODE = """
import logging, structlog
from secondsite.cli.logs import log_to_stderr
early = structlog.get_logger("made before")
log_to_stderr()
logging.getLogger("secondsite.x").info("plain %s", 1)
logging.getLogger("somebody.else").info("chatter")
logging.getLogger("somebody.else").warning("a worry")
early.info("structured", item="web-1")
early.debug("detail")
print("the result")
"""


def test_logs_leave_standard_output_alone() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the result\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}Z \[INFO\] secondsite\.x: plain 1", lines[0])
    assert "somebody.else: a worry" in lines[1]
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}Z \[info +\] structured +item=web-1", lines[2])
