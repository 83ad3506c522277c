# Every target sets up what it needs on a bare machine: Python 3.10 or newer is all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint nightly format clean

demo: $(READY)  ## distil a small student on real digits
	$(BIN)/kdlab demo

test: $(READY)  ## all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not nightly" --numprocesses=auto --maxprocesses=8

nightly: $(READY)  ## the slow tests: long trainings, many kills
	$(BIN)/python -m pytest -m nightly

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
