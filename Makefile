# Two commands: `make demo` goes from nothing to a scored video, `make test` runs every check.
# Both make the environment when it is missing, and both are quick the second time.

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.installed
READY_TO_TEST := $(VENV)/.installed-tests

export PATH := $(BIN):$(PATH)
# DVC's own scratch space would otherwise lie outside the checkout.
export DVC_SITE_CACHE_DIR := $(CURDIR)/state/dvc
export DVC_NO_ANALYTICS := true
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 20000

.PHONY: help demo test check install data clean

help:
	@echo "make demo     install, make the sample data, run the pipeline, register the champion, score two videos"
	@echo "make test     install, then lint, format, types and all tests"
	@echo "make check    lint, format and types alone"
	@echo "make install  the environment alone, in $(VENV)"
	@echo "make clean    remove caches, checkpoints and state (not data/)"

install: $(READY)

$(READY): requirements.lock pyproject.toml
	@echo "== Installing into $(VENV) (pinned by requirements.lock; some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(READY_TO_TEST): $(READY) requirements-test.lock
	@echo "== Installing what only tests use"
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.lock
	@touch $@

data: $(READY)
	@if [ ! -e data ]; then \
		echo "== Making the sample data set"; \
		qualivision sample-data && dvc add --quiet data; \
	fi

demo: data
	@echo "== Rebuilding what changed (dvc repro)"
	@dvc repro
	@echo "== Registering the model as champion"
	@qualivision register --promote
	@echo "== Scoring two videos that the model has not seen"
	@qualivision score $$(ls data/test/videos/*.mp4 | sed -n '1p;$$p') --prompts data/test/test_labels.csv
	@echo "== Done. Try: $(VENV)/bin/qualivision score VIDEO --prompt TEXT"

check: $(READY)
	@echo "== Lint"
	@ruff check .
	@echo "== Format"
	@ruff format --check .
	@echo "== Types"
	@mypy

test: $(READY_TO_TEST) check
	@echo "== Tests"
	@pytest -n 2 --dist loadfile

clean:
	rm -rf cache checkpoints state .pytest_cache .mypy_cache .ruff_cache
