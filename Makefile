# Everything a newcomer needs: `make demo` and `make test`. Both install what is missing and can be run again.
SHELL := /bin/bash
PY := .venv/bin/python
.PHONY: setup demo test check bench lab clean fast

setup:
	@tools/setup.sh

demo: setup          ## protect, test, fail over and bring back a real VM on two sites of this machine
	@$(PY) -m secondsite demo

test: setup          ## all checks and all tests, fast ones first
	@PATH="$(CURDIR)/.venv/bin:$$PATH" tools/test.sh

check: setup         ## format, lint, types, import contracts
	@PATH="$(CURDIR)/.venv/bin:$$PATH" tools/check.sh

fast: check          ## checks and the tests that need no hypervisor
	@$(PY) -m pytest -q -n 2 tests/unit tests/property tests/contract

bench: setup         ## our figures beside a peer's, as ratios
	@$(PY) bench/run.py

lab: setup           ## two sites on this machine, in ./lab-run; end them with: .venv/bin/secondsite lab down --dir lab-run
	@.venv/bin/secondsite lab up --dir lab-run

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* src/*.egg-info
