# Everything sets itself up: a virtual environment in .venv, once, again only when the pins change.
# DEPS has others beside it, .venv-lowest and .venv-latest.
#   make run                            the embedded example
#   make run INBOX=folder STUDY=name    your own count files
#   make test | ui | bench | lint
#   make test DEPS=lowest|latest        with the lowest or the newest versions that pyproject.toml admits
# PYTHON       a Python 3.11, 3.12 or 3.13 (default python3)
# NEUMF_TORCH  what pip installs as torch; by default the pinned version, which is meant to be the CPU build
PYTHON ?= python3
PORT ?= 3000
DEPS ?= locked
VENV := .venv$(if $(filter-out locked,$(DEPS)),-$(DEPS))
BIN := $(VENV)/bin
NEUMF_TORCH ?= $(shell grep -E '^torch==' requirements.lock)
PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
INSTALL = $(PIP) --constraint $(VENV)/constraints.txt "$(NEUMF_TORCH)"
# pip would compile with one processor; some packages hold templates that are no Python. UMAP's import compiles
# what it needs for 20 seconds, once, and the kernels take ten; better here than in somebody's first run.
COMPILE = { $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib; $(BIN)/python -c "import umap" & \
	$(BIN)/python -c "from neumf_assets.core.neumf.fused import library; library.load()"; wait; } || true
# what a set of versions is, one `name==version` a line; torch is NEUMF_TORCH in all of them
PINS_locked = cat requirements.lock
PINS_lowest = $(call RESOLVED,lowest-direct)
PINS_latest = $(call RESOLVED,highest)
RESOLVED = $(PIP) uv && $(BIN)/uv pip compile --quiet --no-annotate --no-header --all-extras --resolution $(1) \
	--python $(BIN)/python pyproject.toml
SETUP_OF := pyproject.toml requirements.lock

.PHONY: run test ui bench lint format clean

run: $(VENV)/run.stamp
	@$(BIN)/neumf-assets run $(if $(INBOX),"$(INBOX)") $(if $(STUDY),--study "$(STUDY)")

ui: $(VENV)/run.stamp
	@$(BIN)/neumf-assets ui --port $(PORT)

# the lowest linter would find other things, and formats otherwise
test: $(if $(filter locked,$(DEPS)),lint,$(VENV)/test.stamp)
	$(BIN)/dagster definitions validate --log-level warning -w workspace.yaml
	@# more workers than processors, for the tests wait a lot; threads would only wait for each other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf .venv .venv-lowest .venv-latest .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/constraints.txt: $(SETUP_OF)
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PINS_$(DEPS)) > $@.part
	@grep -vE '^(torch==|triton==|cuda-|nvidia-)' $@.part > $@

$(VENV)/run.stamp: $(VENV)/constraints.txt
	@echo "Setting up $(VENV) (once; takes a few minutes) ..."
	@$(INSTALL) --editable ".[s3]"
	@$(COMPILE)
	@touch $@

$(VENV)/test.stamp: $(VENV)/constraints.txt
	@echo "Setting up $(VENV) with the tests' packages (once; takes a few minutes) ..."
	@# tests need all that is pinned: nothing to be sought, and several unpack at a time, quiet about what they
	@# see each other do by halves
	@{ echo "$(NEUMF_TORCH)"; cat $(VENV)/constraints.txt; } | sed "s/.*/'&'/" | xargs -P 4 -n 40 $(PIP) --quiet --no-deps --no-warn-conflicts
	@$(INSTALL) --editable ".[s3,postgres,ray,kubernetes,dev]"
	@$(COMPILE)
	@touch $(VENV)/run.stamp $@
