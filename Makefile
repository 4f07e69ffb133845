# Every target creates .venv and installs the package into it, if that has not been done.
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first interpreter on PATH that is new enough; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: install demo demo-full test test-oldest test-newest test-labeling test-ray package sbom audit coverage mutation fuzz check static format-check lint types \
	imports docs fix clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo      run every stage on the embedded data and models, into runs/demo/"
	@echo "make demo-full the same, and PQPP on the same data"
	@echo "make test      run all tests"
	@echo "make test-oldest  run all tests with the oldest supported versions of the dependencies, in .venv-oldest"
	@echo "make test-newest  the same with the newest ones, in .venv-newest"
	@echo "make test-labeling  test exports and the ML backend with label-studio-sdk and datumaro, in .venv-labeling"
	@echo "make test-ray  test predict --ray on a local Ray cluster, in .venv-ray"
	@echo "make package   build sdist and wheel, and check the wheel in an empty environment"
	@echo "make sbom      write the installed versions to dist/sbom.json (CycloneDX)"
	@echo "make audit     look the tested versions up in the database of known vulnerabilities"
	@echo "make coverage  run all tests and report the lines that none of them runs"
	@echo "make mutation  change geometry, masks, metrics, grammar, sampling and scoring, and list the changes that no test notices"
	@echo "make fuzz      search for texts and files that break the answer parser and the readers, for 20 minutes"
	@echo "make bench     compare the speed with that of the libraries' own examples, at small sizes, into runs/bench/"
	@echo "make docs      build the documentation site into runs/site/, and check its links"
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
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev,app]" -c constraints.txt
	@touch $(READY)

demo: install
	$(BIN)/sam4mllm demo

demo-full: install
	$(BIN)/sam4mllm demo --full

# Several processes run the files of tests, each file in one process, because its tests share models and data. The tests
# in the browser need Debian's packages chromium and chromium-driver, or the like, and are skipped without.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile
test: install
	$(BIN)/python -m pytest $(PARALLEL)

# Other tests: make test-oldest TESTS="tests/data tests/cli". Neither has gradio, which excludes the newest pillow and
# the oldest fastapi.
TESTS ?=
test-oldest:
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	$(PYTHON) tools/lower_bounds.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --disable-pip-version-check -e ".[dev]" -c .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pytest $(TESTS)

test-newest:
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check --upgrade --upgrade-strategy eager -e ".[dev]"
	.venv-newest/bin/python -m pytest $(TESTS)

# An environment (a folder, and what pip installs there) that finds all other packages in $(VENV).
SITE_PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
define layered_environment
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --disable-pip-version-check $(2)
	$(BIN)/python $(SITE_PACKAGES) > "$$($(1)/bin/python $(SITE_PACKAGES))/dependencies.pth"
	@touch $(1)/.ready
endef

# label-studio-sdk and datumaro.
LABELING := .venv-labeling/.ready
$(LABELING): $(READY) tests/labeling_tools/requirements.txt
	$(call layered_environment,.venv-labeling,--no-deps -r tests/labeling_tools/requirements.txt)

test-labeling: $(LABELING)
	.venv-labeling/bin/python -c "import label_studio_sdk, datumaro"
	.venv-labeling/bin/python -m pytest tests/labeling_tools

# ray.
RAY := .venv-ray/.ready
$(RAY): $(READY) tests/ray_cluster/requirements.txt
	$(call layered_environment,.venv-ray,--no-deps -r tests/ray_cluster/requirements.txt)

# A cluster that does not start, or a worker that is waited for, ends the tests with the stacks of the threads.
test-ray: $(RAY)
	.venv-ray/bin/python -c "import ray.data"
	.venv-ray/bin/python -m pytest -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true tests/ray_cluster

package: install
	$(BIN)/python tools/check_package.py

# Programs about the environment that are not part of it.
SUPPLY := .venv-supply/.ready
$(SUPPLY):
	$(PYTHON) -m venv .venv-supply
	.venv-supply/bin/python -m pip install --disable-pip-version-check "cyclonedx-bom>=7.0,<8" "pip-audit>=2.9,<3"
	@touch $(SUPPLY)

sbom: install $(SUPPLY)
	mkdir -p dist
	.venv-supply/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml -o dist/sbom.json

audit: $(SUPPLY)
	.venv-supply/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

# mutmut and coverage.
QUALITY := .venv-quality/.ready
QUALITY_PACKAGES := "mutmut>=3.8,<4" "coverage>=7.10,<8"
$(QUALITY): $(READY)
	$(call layered_environment,.venv-quality,$(QUALITY_PACKAGES))

coverage: $(QUALITY)
	.venv-quality/bin/coverage run -m pytest $(TESTS)
	.venv-quality/bin/coverage report

mutation: $(QUALITY)
	.venv-quality/bin/mutmut run
	.venv-quality/bin/mutmut results

# atheris has wheels for fewer versions of Python and systems than the other programs, so only this target installs it.
FUZZ_SECONDS ?= 600
fuzz: $(QUALITY)
	.venv-quality/bin/python -m pip install --disable-pip-version-check "atheris>=3.0,<4"
	.venv-quality/bin/python tools/fuzz_coverage.py answers --seconds $(FUZZ_SECONDS) --faults .venv-quality/faults
	.venv-quality/bin/python tools/fuzz_coverage.py lines --seconds $(FUZZ_SECONDS) --faults .venv-quality/faults

# Benchmarks with --small: less than ten minutes on two cores in all.
BENCHMARKS ?= targets predict pqpp train constrained adapter reading score start
bench: install
	set -e; for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/bench_$$name.py --small --json runs/bench/$$name.json; echo; done

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

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist mutants .coverage
