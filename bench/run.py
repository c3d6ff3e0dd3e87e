"""All benchmarks, one after the other: `make bench`. Each prints our figure beside a peer's from the same run.

Arguments are the names of benchmarks to run (default: all but the long ones); `--long` adds those.
No figure here gates anything: machines are noisy, ratios are what to look at.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SHORT = ("ship", "view", "cycle")
LONG = ("rpo",)


def main() -> int:
    """Run the benchmarks; return the worst exit code."""
    wanted = [name for name in sys.argv[1:] if not name.startswith("-")]
    names = wanted or [*SHORT, *(LONG if "--long" in sys.argv else ())]
    worst = 0
    for name in names:
        script = Path(__file__).parent / f"{name}.py"
        if not script.exists():
            print(f"there is no benchmark {name}: choose of {', '.join((*SHORT, *LONG))}", file=sys.stderr)
            return 2
        print(f"\n== {name}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, str(script)]).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
