#!/usr/bin/env bash
# Every proof of docs/design/proofs.md, long: about two hours on two cores. Ends at the first that fails.
#
#   tools/soak.sh [SEEDS]      stories of the simulator (500)
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"
export LC_ALL=C.UTF-8
kills=$(mktemp)
trap 'rm -f "$kills"' EXIT

proof() {
  local began=$SECONDS
  echo; echo "== $*"
  "$@"
  echo "passed in $((SECONDS - began)) s: $*"
}

proof python tools/simulate.py --seeds "${1:-500}"
proof python tools/simulate.py --all-bugs
proof python tools/crash_sweep.py --seconds 1200
proof python tools/crash_sweep.py --all-bugs --limit 64
proof python tools/fuzz.py --seconds 120
proof python tools/fuzz.py --all-bugs --seconds 60
proof python tools/network_proof.py --long
proof python tools/network_proof.py --all-bugs
proof python tools/role_swaps.py --swaps 25
proof python tools/kill_matrix.py --kills "$kills" --minutes 30
