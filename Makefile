# `make demo` and `make test` set themselves up: they need Python 3.11 or newer and nothing else.
# `CONSTRAINTS=`, empty, takes the newest versions of everything, in a folder of their own.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV ?= $(if $(CONSTRAINTS),.venv,.venv-newest)
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q $(if $(CONSTRAINTS),-c $(CONSTRAINTS),--upgrade --upgrade-strategy=eager)

.PHONY: demo test test-newest test-slow lint format bench docs results clean

demo: $(VENV)/.core
	$(BIN)/uld train --config=configs/zeroshot.py:dataset=synthetic,k=10,preset=small --workdir=runs/demo \
	  --config.detector.steps=1500 --config.detector.round_every=500 --config.eval_every=500 --config.save_every=500
	@echo "Look at runs/demo/contact_sheet.png: one colour is one landmark."

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder

test-newest:
	rm -f .venv-newest/.test
	$(MAKE) test CONSTRAINTS= VENV=.venv-newest

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.core
	$(BIN)/python -m benchmarks.step

results: $(VENV)/.core
	$(BIN)/python -m uld_jax.studies.results

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "Look at build/docs/index.html."

clean:
	rm -rf .venv .venv-newest build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "uld_jax needs Python 3.11 or newer; set PYTHON=python3.11, say"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.core

$(VENV)/.docs: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	@touch $@ $(VENV)/.core
