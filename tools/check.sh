#!/usr/bin/env bash
# Format, lint, types, import contracts. A missing tool is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
for tool in ruff mypy lint-imports; do command -v "$tool" >/dev/null || { echo "check: $tool is missing: run tools/setup.sh" >&2; exit 1; }; done
ruff format --check .
ruff check .
mypy
lint-imports
