# Everything sets itself up: a virtual environment in .venv, once, again only when the pins change.
#   make run                            the embedded example
#   make run INBOX=folder STUDY=name    your own count files
#   make test | ui | bench | lint
# PYTHON       a Python 3.11, 3.12 or 3.13 (default python3)
# NEUMF_TORCH  what pip installs as torch; by default the pinned version, which is meant to be the CPU build
PYTHON ?= python3
PORT ?= 3000
BIN := .venv/bin
NEUMF_TORCH ?= $(shell grep -E '^torch==' requirements.lock)
PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
INSTALL = $(PIP) --constraint .venv/constraints.txt "$(NEUMF_TORCH)"
# pip would compile with one processor; some packages hold templates that are no Python
COMPILE = $(BIN)/python -m compileall -qq -j 0 .venv/lib || true
SETUP_OF := pyproject.toml requirements.lock

.PHONY: run test ui bench lint format clean

run: .venv/run.stamp
	@$(BIN)/neumf-assets run $(if $(INBOX),"$(INBOX)") $(if $(STUDY),--study "$(STUDY)")

ui: .venv/run.stamp
	@$(BIN)/neumf-assets ui --port $(PORT)

test: lint
	$(BIN)/dagster definitions validate --log-level warning -w workspace.yaml
	@# more workers than processors, for the tests wait a lot; threads would only wait for each other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/test.stamp
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/constraints.txt: $(SETUP_OF)
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@grep -vE '^torch==' requirements.lock > $@

.venv/run.stamp: .venv/constraints.txt
	@echo "Setting up .venv (once; takes a few minutes) ..."
	@$(INSTALL) --editable ".[s3]"
	@$(COMPILE)
	@touch $@

.venv/test.stamp: .venv/constraints.txt
	@echo "Setting up .venv with the tests' packages (once; takes a few minutes) ..."
	@# tests need all that is pinned: nothing to be sought, and several unpack at a time, quiet about what they
	@# see each other do by halves
	@{ printf '"%s"\n' "$(NEUMF_TORCH)"; cat .venv/constraints.txt; } | xargs -P 4 -n 40 $(PIP) --quiet --no-deps --no-warn-conflicts
	@$(INSTALL) --editable ".[s3,postgres,ray,kubernetes,dev]"
	@$(COMPILE)
	@touch .venv/run.stamp $@
