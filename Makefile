# `make` lists what there is. Everything runs in $(VENV), which `make env` creates.

VENV ?= .venv
PYTHON ?= python3
# More arguments for pytest, e.g. PYTEST_ARGS="-x -k rundir"; or for the demo and the benchmarks.
PYTEST_ARGS ?=
# Processes that share the tests, a file at a time; 0: all in one.
WORKERS ?= 2
DEMO_ARGS ?=
BENCH_ARGS ?= -o benchmarks/results/latest.json
BENCH_GPU_ARGS ?= -o benchmarks/results/latest-gpu.json
# An index of pip's to take torch from, for example one that has the small build for the CPU.
TORCH_INDEX ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt
# What pip would do on one core.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib
PYTEST := $(BIN)/python -m pytest
IN_PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
SOURCES := deepcompile tests benchmarks examples docs

.DEFAULT_GOAL := help
.PHONY: help env demo docs test test-slow opinfo opinfo-full bench bench-gpu lint format wheel-test clean

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

env: $(VENV)/.installed-dev ## Create the environment with all tools

demo: $(VENV)/.installed ## Train a small transformer in eager and compiled, side by side
	@$(BIN)/python -m deepcompile.demo $(DEMO_ARGS)

test: $(VENV)/.installed-dev ## Run the tests
	$(PYTEST) $(IN_PARALLEL) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev ## Run the slow tests too
	$(PYTEST) -m "slow or not slow" $(PYTEST_ARGS)

opinfo: $(VENV)/.installed-dev ## Compare two samples of every torch operator with eager
	DEEPCOMPILE_TEST_OPINFO=two $(PYTEST) -m opinfo $(PYTEST_ARGS)

opinfo-full: $(VENV)/.installed-dev ## All samples of every operator; goes on where it stopped
	DEEPCOMPILE_TEST_OPINFO=full $(PYTEST) -m opinfo $(PYTEST_ARGS)

bench: $(VENV)/.installed-dev ## Measure against eager and Inductor; BENCH_ARGS=--help tells more
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

bench-gpu: $(VENV)/.installed-dev ## Measure on a GPU, in 8 minutes; BENCH_GPU_ARGS=--help tells more
	$(BIN)/python -m benchmarks.gpu $(BENCH_GPU_ARGS)

docs: $(VENV)/.installed-dev ## Build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(VENV)/.installed-dev ## Check style and types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Format the sources
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

wheel-test: $(VENV)/.installed-dev ## Build the wheel, install it elsewhere and use it there
	$(PYTEST) -m "slow or not slow" tests/test_package.py $(PYTEST_ARGS)

clean: ## Remove what builds and tests leave behind; the environment stays
	rm -rf docs/_build docs/reference
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made once, and again when what it must hold changes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV); the first time this downloads torch."
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(INSTALL) -e .
	@$(COMPILE) > /dev/null 2>&1 || true
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e ".[dev]"
	@$(COMPILE) > /dev/null 2>&1 || true
	@touch $@
