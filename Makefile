# make demo, make test, make check: each makes .venv and installs into it when that has not been done.
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first interpreter on the path that is new enough; `make PYTHON=/path/to/python` overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: install demo demo-full test check format-check lint types imports fix clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo      the whole way on the embedded data and models, into runs/demo/"
	@echo "make demo-full the same and, on the same data, the method PQPP; six minutes more"
	@echo "make test      all tests"
	@echo "make check     format, lint, types, tests"
	@echo "make fix       formats, and mends what the linter can mend"
	@echo "make install   makes .venv and installs sam4mllm into it, editable, with the tested versions"
	@echo "make clean     removes caches and runs/; leaves .venv"

install: $(READY)

# A later run sees the marker and starts at once; a change of the project's or the tested versions' file installs again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: sam4mllm needs Python >= 3.11 on the path; none was found" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)

demo: install
	$(BIN)/sam4mllm demo

demo-full: install
	$(BIN)/sam4mllm demo --full

test: install
	$(BIN)/python -m pytest

check: format-check lint types imports test

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
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
