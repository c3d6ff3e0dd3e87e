#!/usr/bin/env bash
# All tiers, fast ones first. Each tier must pass before the next begins; coverage is gathered over all of them.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in libvirtd qemu-system-x86_64 qemu-img qemu-nbd nbdcopy e2fsck gcc; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null || { echo "test: $tool is missing: run tools/setup.sh" >&2; exit 1; }
done
export PATH="$PATH:/usr/sbin:/sbin"
tools/check.sh
rm -f .coverage .coverage.*
echo "== unit, property, contract"
python -m pytest -q -n 2 --cov --cov-report= tests/unit tests/property tests/contract
echo "== integration, fault"
python -m pytest -q -n 2 --cov --cov-append --cov-report= tests/integration tests/fault
echo "== acceptance"
python -m pytest -q --cov --cov-append --cov-report= tests/acceptance
python -m coverage report --fail-under=80
