#!/usr/bin/env bash
# Every proof of docs/design/proofs.md, long: within two hours on two cores. Two rows of proofs run side by side, those of files
# and those of real guests and lines; the first proof that fails ends its row, and both rows' proofs are named at the end.
#
#   tools/soak.sh [SEEDS]      stories of the simulator (500)
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"
export LC_ALL=C.UTF-8
export PYTHONUNBUFFERED=1
notes=$(mktemp -d)
trap 'rm -rf "$notes"' EXIT
SECONDS=0

proof() {  # ROW COMMAND...
  local row=$1 began=$SECONDS code=0
  shift
  echo "== $*"
  "$@" || code=$?
  [ "$code" = 0 ] && verdict=passed || verdict="FAILED ($code)"
  printf '%s in %d s: %s\n' "$verdict" $((SECONDS - began)) "$*" | tee -a "$notes/$row"
  return "$code"
}

files() {
  proof files python tools/simulate.py --seeds "$1" &&
    proof files python tools/simulate.py --all-bugs &&
    proof files python tools/crash_sweep.py --seconds 1200 &&
    proof files python tools/crash_sweep.py --all-bugs --limit 64 &&
    proof files python tools/fuzz.py --seconds 120 &&
    proof files python tools/fuzz.py --all-bugs --seconds 60
}

guests() {
  proof guests python tools/network_proof.py --all-bugs &&
    proof guests python tools/network_proof.py --long &&
    proof guests python tools/role_swaps.py --swaps 25 &&
    proof guests python tools/role_swaps.py --all-bugs &&
    proof guests python tools/kill_matrix.py --all-bugs &&
    proof guests python tools/kill_matrix.py --kills "$notes/kills" --minutes 30
}

row() {  # NAME COMMAND...: its lines with its name before them
  local name=$1
  shift
  "$@" </dev/null 2>&1 | sed -u "s/^/[$name] /"
}

row files files "${1:-500}" &
other=$!
worst=0
row guests guests || worst=1
wait "$other" || worst=1
echo; echo "== soak: $([ "$worst" = 0 ] && echo 'every proof passed' || echo FAILED) in $SECONDS s"
cat "$notes/files" "$notes/guests"
exit "$worst"
