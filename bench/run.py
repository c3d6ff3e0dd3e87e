"""All benchmarks, one after the other: `make bench`. Each prints our figures beside a peer's from the same run.

    python bench/run.py [NAME...]

Ends with the table of all rows (bench/report.py), with date and machine. No figure here gates anything: machines are
noisy, ratios are what to look at. A benchmark that breaks does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from report import ROWS_VARIABLE, Row, table

NAMES = ("initial", "cycle", "churn", "view", "boot", "latency", "resync", "memory", "stored", "service")
"""Those of the table. Others here run alone: ship (the link without a journal), rpo (a lab's guest)."""


def main() -> int:
    """Run the benchmarks; return the worst exit code."""
    names = sys.argv[1:] or NAMES
    known = (*NAMES, "ship", "rpo")
    if unknown := set(names) - set(known):
        print(f"there is no benchmark {', '.join(unknown)}: choose of {', '.join(known)}", file=sys.stderr)
        return 2
    worst = 0
    with tempfile.NamedTemporaryFile("r") as rows:
        for name in names:
            print(f"\n== {name}", flush=True)
            script = Path(__file__).parent / f"{name}.py"
            done = subprocess.run([sys.executable, str(script)], env={**os.environ, ROWS_VARIABLE: rows.name})
            worst = max(worst, abs(done.returncode))
        print("\n" + table([Row(**json.loads(line)) for line in rows]))
    return worst


if __name__ == "__main__":
    sys.exit(main())
