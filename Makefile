# Everything runs from .venv, which is set up again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes, each with whole files, whose tests share what they set up.
TWO := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-gpu lint types format constraints clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install lit_foundry with its tools into it.
	@echo "$(VENV) is ready."

demo: $(STAMP) ## Train and test on a small data set, and write a report.
	@$(BIN)/python scripts/demo.py

test: $(STAMP) ## Run the fast tests.
	@$(BIN)/python -m pytest $(TWO)

test-slow: $(STAMP) ## Run the tests that take minutes or several processes.
	@$(BIN)/python -m pytest $(TWO) -m "slow and not gpu"

test-gpu: $(STAMP) ## Run the tests that need a GPU.
	@$(BIN)/python -m pytest -m gpu

lint: $(STAMP) ## Check style and formatting.
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check

types: $(STAMP) ## Check types.
	@$(BIN)/python -m mypy

format: $(STAMP) ## Repair style and formatting where that is safe.
	@$(BIN)/python -m ruff check --fix --exit-zero
	@$(BIN)/python -m ruff format

# After `.venv/bin/python -m pip install --upgrade PACKAGE` and a green `make test`.
constraints: $(STAMP) ## Pin the versions that .venv holds.
	@{ echo "# The versions that lit_foundry was last tested with; written by 'make constraints'."; \
	  $(BIN)/python -m pip --disable-pip-version-check freeze --all \
	    --exclude pip --exclude lit-foundry --exclude-editable || exit 1; } > .constraints.partial
	@mv .constraints.partial constraints.txt
	@touch $(STAMP)

clean: ## Remove .venv, caches and builds; runs stay.
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interrupted setup leaves a .venv without pip, or of another Python; then it starts afresh.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" > /dev/null || \
	  { echo "$(PYTHON) not found. Install Python 3.11 or later, or name one: make PYTHON=python3.11"; exit 1; } >&2
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lit_foundry needs Python 3.11 or later, $(PYTHON) is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.11"; exit 1; } >&2
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo "$(PYTHON) lacks the venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; } >&2
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
	  "$(PYTHON)" -m venv --clear $(VENV)
	@echo "Installing lit_foundry into $(VENV): several GB and some minutes the first time."
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
