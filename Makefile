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
# The output of parallel targets is printed one after the other, if make supports it.
APART = $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help setup demo test lint unit services unit-and-services e2e integration e2e-and-own-airflow shared-airflow drill-callouts drill-any-meter drill-cluster drill-export drill-history drill-stops \
	bench bench-bounds compat mutants docs format constraints clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## */\1|/' | \
		while IFS='|' read -r name what; do printf 'make %-14s %s\n' "$$name" "$$what"; done

setup:  ## make .venv (with uv where there is one), or bring it up to date
	@.ci/setup

demo: setup  ## run the example Dags on a private Airflow against a simulated Zuora Mediation (KEEP=1: leave the UI up)
	@exec $(BIN)/python -m demo $(if $(filter-out 0,$(KEEP)),--keep)

test: setup  ## everything: lint, types, unit tests, and those on a real Airflow, with a browser and without
	@$(MAKE) --no-print-directory --jobs=4 $(APART) lint unit-and-services e2e-and-own-airflow shared-airflow

lint: setup  ## ruff (rules and format), mypy, and a check of the wording
	@$(MODESTLY) $(BIN)/ruff check --quiet .
	@$(MODESTLY) $(BIN)/ruff format --quiet --check .
	@$(MODESTLY) $(BIN)/mypy --no-error-summary
	@$(MODESTLY) $(BIN)/python docs/check_words.py

unit: setup  ## unit tests that start no database, server or process, each row of a table in one mode, a tenth of the random examples: half a minute
	@$(PYTEST) -m 'not services and not full' --hypothesis-profile=quick tests/unit

services: setup  ## unit tests that start a database, a server or a process: a few minutes
	@$(PYTEST) -m services --numprocesses logical --dist worksteal tests/unit

# Both, with a third of Hypothesis' own number of examples, on the processors that the tests on a real Airflow leave idle while they wait.
unit-and-services: setup
	@$(PYTEST) --hypothesis-profile=third --numprocesses 2 --dist worksteal tests/unit

e2e: setup  ## tests of the pages, in a browser on a real Airflow
	@$(PYTEST) tests/e2e

integration: setup  ## tests on a real Airflow
	@$(PYTEST) tests/integration

# Two parts of the same length: the integration tests on the Airflow that they share, and all others on a real Airflow.
e2e-and-own-airflow: setup
	@$(PYTEST) -m 'not shared_airflow' tests/e2e tests/integration

shared-airflow: setup
	@$(PYTEST) -m shared_airflow tests/integration

# The tests on a real Airflow have priority.
lint unit-and-services: MODESTLY = nice -n 10

compat:  ## test each supported Airflow with each supported Python, in environments of their own (two hours; PYTHON_3_12=/path/to/python3.12 ...)
	@.ci/compat

drill-callouts: setup  ## hold callouts against the truth: doubled, disordered, lost, and servers killed (ten minutes)
	@$(BIN)/python -m tests.drill.callouts
	@$(BIN)/python -m tests.drill.callouts --database sqlite --sessions 60 --changes 1000 --senders 8 --seconds 60
	@$(BIN)/python -m tests.drill.lost

drill-any-meter: setup  ## 10,000 changes of 2,000 meters, one Dag on any of them: each arrival one run; and how fast callouts are (ten minutes)
	@$(BIN)/python -m tests.drill.any_meter

drill-cluster: setup  ## a fault in each round on a cluster: CeleryExecutor, two of each process, nginx; goes on after an interruption (ROUNDS="worker redis", SESSIONS=18, AGAIN=1; hours)
	@$(BIN)/python -m tests.drill.cluster $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SESSIONS),--sessions $(SESSIONS)) $(if $(filter-out 0,$(AGAIN)),--again)

drill-history: setup  ## no open port: callouts go nowhere, the history alone is read, and a triggerer is killed (fifteen minutes)
	@$(BIN)/python -m tests.drill.callout_history
	@$(BIN)/python -m tests.drill.callout_history --retry attempt --seed 2
	@$(BIN)/python -m tests.drill.callout_history --retry callout --late 300 --known --seed 3

drill-export: setup  ## wait ten minutes for an export without a worker, and kill the triggerer in the middle
	@$(BIN)/python -m tests.drill.export

drill-stops: setup  ## suspend triggerers and schedulers, mark tasks, leave them without a triggerer: which process stops a meter (a quarter of an hour)
	@$(BIN)/python -m tests.drill.stops

mutants: setup  ## change 150 places of the core, one at a time: at least 90 % must fail a unit test (seven minutes)
	@$(BIN)/python -m tests.mutation --seed 1 --mutants 150

bench:  ## measure the cost of waiting and the faults it survives, the load of callouts and feed, the pages, and bounds (two hours on a quiet machine)
	@DEPENDENCY_GROUPS="dev bench" .ci/setup
	@$(BIN)/python -m benchmarks.waiting_cost --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.fault_survival --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.callout_throughput --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.callout_lag --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.feed_at_scale --check --markdown docs/benchmarks.md
	@$(BIN)/python -m benchmarks.pages_at_scale --check --markdown docs/benchmarks.md
	@$(MAKE) --no-print-directory bench-bounds

bench-bounds:  ## measure the processor time of many waits in triggerer and API server (BEFORE=commit: compare with it; a quarter of an hour)
	@DEPENDENCY_GROUPS="dev bench" .ci/setup
	@$(BIN)/python -m benchmarks.bounds --check $(if $(BEFORE),--before $(BEFORE)) --markdown docs/benchmarks.md

docs:  ## build the documentation with Sphinx (build/site); a warning or a dead internal link is an error (half a minute)
	@DEPENDENCY_GROUPS="dev docs" .ci/setup
	@rm -rf $(SCRATCH) && mkdir -p $(SCRATCH) && trap 'rm -rf $(SCRATCH)' EXIT && AIRFLOW_HOME=$(SCRATCH) \
		$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs -b html . build/site
	@echo "build/site/docs/index.html"

format: setup  ## write the code in ruff's format
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

# Names and versions alone, valid for every supported Python. Airflow 3.2 has no upper bounds and does not start with
# libraries newer than June 2026.
RESOLVE = uv pip compile --quiet --universal --python-version 3.11 --group dev --group bench --group celery --group docs --upgrade \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml
OLDER = --exclude-newer 2026-06-15
constraints:  ## resolve the pinned versions again (needs uv)
	$(RESOLVE) <(echo 'apache-airflow==3.3.*') -o constraints/airflow-3.3.txt
	$(RESOLVE) <(echo 'apache-airflow==3.2.*') -o constraints/airflow-3.2.txt $(OLDER)
	@# The lowest version of each dependency of the package; the tests' own tools are not old.
	$(RESOLVE) <(uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --no-header --annotation-style line $(OLDER) pyproject.toml | \
		grep 'via.*airflow-mediation-provider' | sed 's/ .*//') -o constraints/airflow-3.2-lowest.txt $(OLDER)

clean:  ## remove .venv and everything else that was made
	rm -rf $(VENV) .compat .demo .scratch .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
