#!/usr/bin/env bash
# All tiers, fast ones first; with "fast" only those that need no hypervisor. A tier must pass before the next begins.
# Coverage is gathered in the unit tier only: it makes a test half as long again, and elsewhere daemons do the work.
# The closing lines of every tier stand together at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"
# Tests must not depend on the machine's language, and leave the person's settings and cluster alone.
export LC_ALL=C.UTF-8
unset SECONDSITE_CONFIG SECONDSITE_URL SECONDSITE_TOKEN SECONDSITE_CA PGHOST PGPORT PGUSER PGDATABASE PGPASSWORD PGSERVICE
fast_only=no
[ "${1:-}" != fast ] || fast_only=yes

[ "$fast_only" = yes ] || for tool in libvirtd qemu-system-x86_64 qemu-img qemu-nbd nbdcopy e2fsck gcc krb5kdc; do
  command -v "$tool" >/dev/null || { echo "test: $tool is missing: run tools/setup.sh test" >&2; exit 1; }
done

said=$(mktemp)
lines=()
trap 'rm -f "$said"' EXIT

tier() {  # NAME COMMAND...: run it; on failure say which tier it was, and end
  local name=$1 began=$SECONDS closing
  shift
  echo; echo "== $name"
  if "$@" 2>&1 | tee "$said"; then
    closing=$(tail -n 1 "$said" | tr -d '=' | xargs -0)
    lines+=("$(printf '%-28s %4d s   %s' "$name" $((SECONDS - began)) "$closing")")
  else
    closing=$(tail -n 1 "$said")
    echo
    [ ${#lines[@]} -eq 0 ] || printf 'passed: %s\n' "${lines[@]}"
    printf 'FAILED: %-28s %4d s\n%s\n' "$name" $((SECONDS - began)) "$closing"
    exit 1
  fi
}

tier "checks" tools/check.sh
rm -f .coverage .coverage.*
pytest=(python -m pytest --no-header --durations=15 --durations-min=2 -p no:cacheprovider)
tier "unit, contract" "${pytest[@]}" --cov --cov-report= -n 2 tests/unit tests/contract
tier "coverage of these" python -m coverage report --fail-under=80
if [ "$fast_only" = yes ]; then
  tier "property" "${pytest[@]}" -n 2 tests/property
else
  # These often wait for guests, so a third runs beside two; whoever is done takes from the others.
  tier "property, integration, fault" "${pytest[@]}" -n 3 --dist worksteal tests/property tests/integration tests/fault
  # By file, since the stories of one file share a lab.
  tier "acceptance" "${pytest[@]}" -n 3 --dist loadfile --no-loadscope-reorder tests/acceptance
fi
echo; echo "== every tier passed"
printf '%s\n' "${lines[@]}"
