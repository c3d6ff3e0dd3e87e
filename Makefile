# Everything a newcomer needs: `make demo` and `make test`. Both install what is missing and can be run again.
SHELL := /bin/bash
PY := .venv/bin/python
.PHONY: setup setup-test setup-bench demo test check fast soak bench lab clean
SEEDS ?= 500

setup:
	@tools/setup.sh demo

setup-test:
	@tools/setup.sh test

setup-bench:
	@tools/setup.sh bench

demo: setup          ## protect, test, fail over and bring back a real VM on two sites of this machine
	@tools/reaping.py $(PY) -m secondsite demo

test: setup-test     ## all checks and all tests, fast ones first
	@tools/reaping.py tools/test.sh

check: setup         ## format, lint, types, import contracts
	@tools/check.sh

fast: setup-test     ## checks and the tests that need no hypervisor
	@tools/reaping.py tools/test.sh fast

soak: setup-test     ## every proof, long (docs/design/proofs.md): make soak SEEDS=500
	@tools/reaping.py tools/soak.sh $(SEEDS)

bench: setup-bench   ## our figures beside a peer's, as ratios
	@tools/reaping.py $(PY) bench/run.py

lab: setup           ## two sites on this machine, in ./lab-run; end them with: .venv/bin/secondsite lab down --dir lab-run
	@.venv/bin/secondsite lab up --dir lab-run

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* src/*.egg-info
