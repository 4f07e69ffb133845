# Every target creates .venv and installs the package into it, if that has not been done.
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first interpreter on PATH that is new enough; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: install demo demo-full test check static format-check lint types imports fix clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo      run every stage on the embedded data and models, into runs/demo/"
	@echo "make demo-full the same, and PQPP on the same data"
	@echo "make test      run all tests"
	@echo "make static    check format, lint, types and import layers"
	@echo "make imports   check the import layers only (import-linter)"
	@echo "make check     static and test: what a change must pass"
	@echo "make fix       format, and apply the automatic fixes of the linter"
	@echo "make install   create .venv and install sam4mllm into it, editable, with the tested versions"
	@echo "make clean     remove caches and runs/; keeps .venv"

install: $(READY)

# The marker file makes later runs start at once; a change of pyproject.toml or constraints.txt installs again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: sam4mllm needs Python >= 3.11 on PATH; none was found" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)

demo: install
	$(BIN)/sam4mllm demo

demo-full: install
	$(BIN)/sam4mllm demo --full

test: install
	$(BIN)/python -m pytest

check: static test

static: format-check lint types imports

format-check: install
	$(BIN)/ruff format --check .

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
