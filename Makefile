# Every target sets up what it needs on a bare machine: Python 3.10 or newer is all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all lint nightly mutation format clean

demo: $(READY)  ## distill a small student on real digits
	$(BIN)/kdlab demo

test: $(READY)  ## what protects every mechanism, in about four minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not full and not nightly" --numprocesses=auto --maxprocesses=8

test-all: $(READY)  ## the rest: a mechanism repeated over every method and config
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "full and not nightly" --numprocesses=auto --maxprocesses=8

nightly: $(READY)  ## slow tests: kills, Ray, notebooks, long trainings
	$(BIN)/python -m pytest -m nightly

mutation: $(READY)  ## a sampled mutation run; more than an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mutation]'
	$(BIN)/python tests/mutation.py --sample 200 --seed 0

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kdlab needs Python 3.10 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
