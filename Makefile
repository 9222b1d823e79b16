# Two commands matter: `make demo` and `make test`. Each sets up .venv by itself.
#   PYTHON=/path/to/python3.13        the interpreter of .venv
#   CONSTRAINTS=constraints/...txt    the pinned versions (Airflow 3.3 by default)
#   KEEP=1                            demo: leave Airflow's UI up until Ctrl-C

SHELL := /bin/bash
.DEFAULT_GOAL := help
CONSTRAINTS ?= constraints/airflow-3.3.txt
VENV := .venv
BIN := $(VENV)/bin
export PYTHON CONSTRAINTS VENV KEEP
# Bytecode halves the time that each of Airflow's processes takes to start.
unexport PYTHONDONTWRITEBYTECODE
# Tests write here alone; removed when they end.
SCRATCH = $(CURDIR)/.scratch/$@
PYTEST = rm -rf $(SCRATCH) && mkdir -p $(SCRATCH) && trap 'rm -rf $(SCRATCH)' EXIT && \
	TMPDIR=$(SCRATCH) AIRFLOW_HOME=$(SCRATCH)/airflow $(MODESTLY) $(BIN)/python -m pytest
# Unit tests share nothing; the others share one Airflow, and spend half of their time waiting for it. Beside those, one
# process is enough: it is done before them, and leaves Airflow a processor.
IN_PARALLEL = --numprocesses $(PROCESSES) --dist worksteal
PROCESSES = logical
# What runs beside each other is told one after the other, where make can do that.
APART = $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help setup demo test lint unit e2e airflow integration drill-callouts bench format constraints clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## */\1|/' | \
		while IFS='|' read -r name what; do printf 'make %-14s %s\n' "$$name" "$$what"; done

setup:  ## make .venv (with uv where there is one), or bring it up to date
	@.ci/setup

demo: setup  ## run the example DAGs on a private Airflow against a simulated Zuora Mediation (KEEP=1: leave the UI up)
	@exec $(BIN)/python -m demo $(if $(filter-out 0,$(KEEP)),--keep)

test: lint  ## everything: lint, types, unit tests, and those on a real Airflow, with a browser and without
	@$(MAKE) --no-print-directory --jobs=2 $(APART) PROCESSES=1 unit airflow

lint: setup  ## ruff (rules and format) and mypy
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

unit: setup  ## unit tests, a few minutes
	@$(PYTEST) $(IN_PARALLEL) tests/unit

e2e: setup  ## tests of the pages, in a browser on a real Airflow
	@$(PYTEST) tests/e2e

# Who waits for a real Airflow goes first.
unit: MODESTLY = nice -n 5

airflow: setup  ## both: all tests on a real Airflow
	@$(PYTEST) tests/e2e tests/integration

integration: setup  ## tests on a real Airflow
	@$(PYTEST) tests/integration

drill-callouts: setup  ## hold callouts against the truth: doubled, disordered, lost, and servers killed (ten minutes)
	@$(BIN)/python -m tests.drill.callouts
	@$(BIN)/python -m tests.drill.callouts --database sqlite --sessions 60 --changes 1000 --senders 8 --seconds 60
	@$(BIN)/python -m tests.drill.lost

bench:  ## measure what waiting costs and survives, what callouts and the feed bear, and the pages (two hours on a quiet machine)
	@EXTRAS=dev,bench .ci/setup
	@$(BIN)/python -m benchmarks.waiting_cost --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.fault_survival --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.callout_throughput --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.callout_lag --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.feed_at_scale --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.pages_at_scale --check --markdown docs/benchmarks.md

format: setup  ## write the code in ruff's format
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

# Names and versions alone, valid for every supported Python. Airflow 3.2 has no upper bounds and does not start with
# libraries newer than June 2026.
RESOLVE = uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra bench --upgrade \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml
constraints:  ## resolve the pinned versions again (needs uv)
	$(RESOLVE) <(echo 'apache-airflow==3.3.*') -o constraints/airflow-3.3.txt
	$(RESOLVE) <(echo 'apache-airflow==3.2.*') -o constraints/airflow-3.2.txt --exclude-newer 2026-06-15

clean:  ## remove .venv and everything else that was made
	rm -rf $(VENV) .demo .scratch .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
