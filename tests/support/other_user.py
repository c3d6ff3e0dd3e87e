"""Whether the account that tests of root borrow can read this checkout: below root's own home folder it cannot."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


@cache
def reads_this_checkout(name: str = "nobody") -> bool:
    """Whether this user, or anybody if the tests run as an ordinary user, can import what is tested here."""
    if os.geteuid() != 0:
        return True
    account = pwd.getpwnam(name)
    become = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    asked = [*become, sys.executable, "-c", "import secondsite, numpy"]
    return subprocess.run(asked, cwd="/", capture_output=True).returncode == 0
