# Everything that is done to this repository by hand, by name. `make run` needs Debian 12 or newer and nothing else.
DATA ?= ./data
# The tests wait for engines more than they compute, so there are more processes than cores.
WORKERS ?= 4
PYTHON := .venv/bin/python
CODE := gateway tui backends storage tests

.PHONY: run install test check bench fmt

run: .venv/.installed-run  ## Serve from this machine; prints `ready ssh ADDRESS:PORT`
	@packaging/setup.sh programs
	@exec .venv/bin/ashore serve --data $(DATA)

install: .venv/.installed-dev  ## The virtual environment with everything that the tests need

test: install  ## The whole suite in WORKERS processes; needs the programs that .ci/run installs
	$(PYTHON) -m pytest -n $(WORKERS) --durations=25

check: install  ## Style, types, who may import whom, pinned versions
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTHON) -m pytest -q tests/test_packaging.py

bench: install  ## Ratios against OpenSSH and rclone, measured side by side; table here, JSON in bench-results/
	$(PYTHON) -m tests.bench

fmt: install  ## Put the code into shape
	.venv/bin/ruff check --fix $(CODE)
	.venv/bin/ruff format $(CODE)

.venv/.installed-%: pyproject.toml constraints.txt packaging/setup.sh
	@packaging/setup.sh $*
